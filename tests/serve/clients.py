"""Asks a server for a call of a tool with a client of others, and prints the call's arguments as JSON.

Usage: clients.py instructor|litellm|agents http://127.0.0.1:8000/v1
"""

import json
import sys
from typing import Literal

from pydantic import BaseModel

name, base_url = sys.argv[1:]
MESSAGES = [{"role": "user", "content": "Who?"}]


class Tide(BaseModel):
    at: Literal["noon", "night"]


def with_instructor():
    import instructor
    from openai import OpenAI

    client = instructor.from_openai(OpenAI(base_url=base_url, api_key="key"))
    answer = client.chat.completions.create(
        model="base", messages=MESSAGES, response_model=Tide, max_tokens=120, max_retries=0
    )
    return answer.model_dump()


def with_litellm():
    import litellm

    tool = {"type": "function", "function": {"name": "tide", "parameters": Tide.model_json_schema()}}
    answer = litellm.completion(
        model="openai/base",
        api_base=base_url,
        api_key="key",
        messages=MESSAGES,
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=120,
    )
    return json.loads(answer.choices[0].message.tool_calls[0].function.arguments)


def with_agents():
    from agents import Agent, ModelSettings, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    seen = {}

    @function_tool
    def tide(at: Literal["noon", "night"]) -> str:
        seen["at"] = at
        return "3 m"

    client = AsyncOpenAI(base_url=base_url, api_key="key")
    agent = Agent(
        name="a",
        tools=[tide],
        model=OpenAIResponsesModel(model="base", openai_client=client),
        model_settings=ModelSettings(tool_choice="required", max_tokens=100, parallel_tool_calls=False),
        tool_use_behavior="stop_on_first_tool",
    )
    Runner.run_sync(agent, "Who?")
    return seen


print(json.dumps({"instructor": with_instructor, "litellm": with_litellm, "agents": with_agents}[name]()))
