"""Which files a message or an address may name: those that this server handed out, and no others.

Gradio notes the path of each upload and of each picture that a handler gave a page. Those paths
carry a digest with a secret of this server's, so nobody guesses another visitor's. A path is looked
up as it is written: never resolved, never opened, however it is spelt.
"""

import gradio as gr

from playground.ui.guard.messages import MAX_PATH
from playground.ui.guard.refused import Refused

_KEYS = {"path", "url", "size", "orig_name", "mime_type", "is_stream", "meta"}
_MARK = {"_type": "gradio.FileData"}


class Files:
    """The files of a page, as long as Gradio keeps them. Safe from any thread."""

    def __init__(self, page: gr.Blocks):
        self._sets = page.temp_file_sets

    def is_known(self, path: object) -> bool:
        if not isinstance(path, str) or len(path) > MAX_PATH:
            return False
        return any(path in paths for paths in tuple(self._sets))

    def check(self, file: dict) -> None:
        """Raises Refused for what is not exactly a file of this page."""
        well = file.keys() <= _KEYS and file.get("meta") == _MARK and not file.get("is_stream")
        if not (well and self.is_known(file.get("path"))):
            raise Refused(403, "Files are uploaded, not named.")
