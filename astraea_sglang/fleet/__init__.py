"""A fleet of real agents: BFCL tasks with really executed tools, replayed against a server."""
