"""The answer to a request that goes no further."""

from starlette.responses import PlainTextResponse


class Refused(Exception):
    """status: of HTTP; str() goes to whoever asked, so it names no path and no code."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status

    def response(self) -> PlainTextResponse:
        return PlainTextResponse(str(self), self.status)
