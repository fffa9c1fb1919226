"""Instructor, in the modes that people use with vLLM, against a Quire binary: `instructor_client.py QUIRE_BINARY`."""

import sys

import instructor
import openai
from pydantic import BaseModel

from server import run_checks, serve


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


def check_modes():
    with serve() as server:
        for mode in (instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS):
            api = instructor.from_openai(openai.OpenAI(base_url=f"http://{server.http}/v1", api_key="none"), mode=mode)
            person = api.chat.completions.create(
                model="pebble",
                response_model=Person,
                messages=[{"role": "user", "content": "Ann is 31 years old. Who is she?"}],
                temperature=0,
                max_tokens=200,
                max_retries=0,
            )
            assert isinstance(person, Person), (mode, person)


run_checks(sys.modules[__name__])
