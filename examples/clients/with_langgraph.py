"""langgraph: a graph of a model and its tools, over langchain's ChatOpenAI."""

import json
import sys

from langchain_openai import ChatOpenAI
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from task import MAX_TOKENS, MAX_TURNS, TOOLS, chat, ran

tools = list(TOOLS.values())
model = ChatOpenAI(
    model="smollm2", base_url=sys.argv[1] + "/v1", api_key="none", temperature=0, max_tokens=MAX_TOKENS
).bind_tools(tools)


def think(state: MessagesState) -> dict:
    return {"messages": [model.invoke(state["messages"])]}


graph = StateGraph(MessagesState)
graph.add_node("think", think)
graph.add_node("tools", ToolNode(tools))
graph.add_edge(START, "think")
graph.add_conditional_edges("think", tools_condition)
graph.add_edge("tools", "think")
asked = chat()
done = graph.compile().invoke({"messages": asked}, {"recursion_limit": 2 * MAX_TURNS})["messages"]
print(done[-1].content)
requests = sum(message.type == "ai" for message in done[len(asked) :])
print(json.dumps({"client": "langgraph", "requests": requests, "tools": ran}))
