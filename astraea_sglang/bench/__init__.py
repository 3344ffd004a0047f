"""The replay lab: agent programs on SGLang's real scheduler, with an emulated device and virtual time."""
