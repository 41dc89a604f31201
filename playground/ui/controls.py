"""Start and Stop of a measurement, and the sentence below them on where it stands."""

import dataclasses

import gradio as gr

from playground.ui import errors


@dataclasses.dataclass(frozen=True, slots=True)
class Controls:
    start: gr.Button
    stop: gr.Button
    status: gr.HTML

    @property
    def outputs(self) -> list:
        return [self.status, self.start, self.stop]

    def updates(self, sentence: str, *, running: bool) -> dict:
        return {
            self.status: errors.status(sentence),
            self.start: gr.update(interactive=not running),
            self.stop: gr.update(interactive=running),
        }


def build(label: str, start: str, stop: str, status: str) -> Controls:
    """To be called where they stand. label: of the start; start, stop, status: their ids."""
    with gr.Row(elem_classes="buttons"):
        begin = gr.Button(label, variant="primary", elem_id=start)
        end = gr.Button("Stop", interactive=False, scale=0, min_width=110, elem_id=stop)
    return Controls(begin, end, gr.HTML("", apply_default_css=False, elem_id=status))
