"""`python app.py --check`: what a checkpoint is, whether it would open, and what it would be asked,
without loading its weights. Nothing here starts JAX on a device.

    python -m playground.checkpoints.check REQUESTS

is the same for the page: `resolve.Request`s as a JSON list, and exit status 0 where all would open.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from models.checkpoints import lerobot, lora
from models.checkpoints.arrays import check as check_arrays
from models.checkpoints.arrays import check_files
from models.checkpoints.digests import params_folder, weights_file
from models.checkpoints.openpi import open_openpi, parameter_count, rows
from models.fast_tokenizer import FastActionTokenizer, FastTokenizer
from models.tokenizer import PaligemmaTokenizer
from playground.checkpoints import catalog, download, memory_plan
from playground.checkpoints.device import SMALL
from playground.checkpoints.entry import TITLES, Entry
from playground.checkpoints.resolve import (
    Request,
    gpu_memory_gb,
    resolve,
    resolve_all,
    takes_a_gpu,
)
from playground.checkpoints.stats import norm_stats, stats_notes
from playground.robots.norm_stats import normalise
from playground.robots.robot import NO_CAMERA

_LAYOUTS = {
    "openpi": "openpi's checkpoint (Orbax)",
    "openpi_pytorch": "openpi's PyTorch checkpoint",
    "lerobot": "LeRobot's policy",
    "bundled": "a small policy of this project's",
    "untrained": "a small policy of this project's, without weights",
}
_PROMPT = "pick up the cup"
_TOKENS = 12
_BYTES = 2  # a parameter, in bfloat16


def report(request: Request) -> tuple[str, bool]:
    """What there is to say of a checkpoint, in lines, and whether it would open."""
    try:
        entry = resolve(request)
    except ValueError as error:
        return f"{request.checkpoint} does not open.\n{error}", False
    lines, problems = [*_what_it_is(entry)], []
    if entry.folder is None:
        lines.append("weights: not on this machine; they are downloaded when it is opened")
    for what, tell in (("weights", _weights), ("norm stats", _stats), ("prompt", _prompt)):
        if entry.folder is None and what != "prompt":
            continue
        try:
            lines += [f"{what}: {line}" for line in tell(entry)]
        except ValueError as error:
            # A prompt with the state in it needs the norm stats too.
            if not any(problem.endswith(f": {error}") for problem in problems):
                problems.append(f"{what}: {error}")
    verdict = "It would not open:" if problems else "It would open."
    return "\n".join([*lines, "", verdict, *problems]), not problems


def _what_it_is(entry: Entry) -> Iterable[str]:
    robot, config = entry.robot, entry.config
    yield f"{entry.folder or entry.address}: {_LAYOUTS[entry.kind]}, {TITLES[entry.family]}"
    yield f"name: {entry.name}"
    yield (
        f"robot: {robot.title}, {len(robot.state)} numbers of state, {len(robot.actions)} of "
        f"action, {config.action_horizon} steps at {robot.control_hz:g} Hz"
    )
    yield f"actions: {_meaning(entry)}"
    for slot in entry.slots:
        camera = "no camera" if slot.camera == NO_CAMERA else slot.camera
        need = "required" if slot.required else f"{slot.when_missing} where there is none"
        yield f"picture {slot.name}: {camera}, {need}"
    yield f"default prompt: {entry.default_prompt or 'none'}"
    yield (
        f"memory: {entry.num_parameters / 1e9:.2f} billion parameters, "
        f"{_BYTES * entry.num_parameters / 1e9:.1f} GB in bfloat16"
    )
    for note in (*robot.notes, *([entry.notice] if entry.notice else [])):
        yield f"note: {note}"


def _meaning(entry: Entry) -> str:
    offsets = [d.name for d, o in zip(entry.robot.actions, entry.robot.offsets, strict=False) if o]
    velocities = [d.name for d in entry.robot.actions if d.meaning == "velocity"]
    said = [f"velocities ({', '.join(velocities)}), the rest absolute"] if velocities else []
    if offsets:
        said.append(f"predicted as offsets from the state ({', '.join(offsets)})")
        said += [] if velocities else ["absolute as shown"]
    return ", ".join(said) or "absolute"


def _weights(entry: Entry) -> Iterable[str]:
    """Every array's name and shape, against the config."""
    if entry.kind in ("bundled", "untrained"):
        return
    if entry.kind == "openpi":
        params = params_folder(entry.params or entry.here)
        arrays = lora.merge(open_openpi(params), entry.adapters, where=str(params))
        check_arrays(
            f"{params} does not fit the config:",
            {row.path: row.stored_shape for row in rows(entry.config)},
            {path: (x.shape, x.dtype) for path, x in arrays.items()},
        )
        check_files(params)
    elif (weights := weights_file(entry.base_folder or entry.here)) is None:
        yield "not on this machine; they are downloaded when it is opened"
        return
    else:
        adapters = None if entry.base_folder is None else entry.folder
        arrays = lerobot.open_lerobot(weights, entry.config, adapters)
    types = sorted({str(stored.dtype) for stored in arrays.values()})
    size = sum(stored.nbytes for stored in arrays.values())
    yield f"{len(arrays)} arrays as the config asks for, {size / 1e9:.2f} GB in {', '.join(types)}"


def _stats(entry: Entry) -> Iterable[str]:
    if entry.kind == "untrained":
        return
    stats = norm_stats(entry)
    for key, method in entry.methods.items():
        yield f"{key} by {method}, {len(stats[key].mean)} dimensions"
    yield from stats_notes(entry)


def _prompt(entry: Entry) -> Iterable[str]:
    """What the model would read, with the resting state, where the tokenizers are here."""
    if absent := _absent_tokenizer(entry):
        yield f"not shown, {absent}"
        return
    state = np.array(entry.robot.resting_state)
    if entry.folder is not None and entry.kind != "untrained":
        stats = norm_stats(entry)["state"]
        state = normalise(entry.robot.state_to_model(state), stats, entry.normalisation)
    state = np.pad(state, (0, max(0, entry.rules.prompt_state_dims - len(state))))
    words, length = entry.default_prompt or _PROMPT, entry.config.max_token_len
    tokenizer = PaligemmaTokenizer(_text_tokenizer(entry), entry.convention)
    if entry.action_tokenizer is not None:
        actions = FastActionTokenizer.load(_action_tokenizer(entry.action_tokenizer))
        prompt = FastTokenizer(tokenizer, actions).tokenize(words, state, length)
    else:
        prompt = tokenizer.tokenize(words, length, state if entry.state_in_prompt else None)
    ids = prompt.tokens[prompt.mask].tolist()
    yield f"{prompt.text!r}, as the robot rests"
    yield f"{len(ids)} of {length} tokens, the first {ids[:_TOKENS]}"
    if prompt.truncated:
        yield f"{prompt.truncated} tokens do not fit"


def _absent_tokenizer(entry: Entry) -> str:
    """Which of the tokenizers is missing, in words; "" where both are here."""
    if entry.family == "pi0_fast" and entry.action_tokenizer is None:
        return "its tokenizer of actions is fitted when it is opened"
    if not (text := _text_tokenizer(entry)).is_file():
        return f"the sentencepiece model is not on this machine ({text})"
    if entry.action_tokenizer is not None:
        folder = _action_tokenizer(entry.action_tokenizer)
        if not (folder / "processor_config.json").is_file():
            return f"the tokenizer of actions is not on this machine ({folder})"
    return ""


def _text_tokenizer(entry: Entry) -> Path:
    if entry.kind in ("bundled", "untrained"):
        return catalog.TOKENIZER
    return entry.text_tokenizer or download.local_path(catalog.PALIGEMMA_TOKENIZER)


def _action_tokenizer(name: str) -> Path:
    folder = Path(name)
    return folder if folder.is_dir() else download.local_path(f"hf://{name}")


def check(requests: Sequence[Request]) -> tuple[str, bool]:
    """The reports of several, and whether all would open, together."""
    reports = [report(request) for request in requests]
    texts, opens = [text for text, _ in reports], all(opens for _, opens in reports)
    if opens:
        try:
            _together(resolve_all(requests))
        except ValueError as error:
            texts.append(
                f"{'Together they' if len(requests) > 1 else 'It'} would not open: {error}"
            )
            opens = False
    return "\n\n".join(texts), opens


def _together(entries: Sequence[Entry]) -> None:
    """Raises ValueError where this machine could not hold them with nothing else in use: what is
    in use now may be a page that ends before they are opened."""
    gpu = gpu_memory_gb() if takes_a_gpu() else None
    if gpu is None and takes_a_gpu():
        return  # of another maker's device nothing is known before JAX starts
    needs = []
    for entry in entries:
        on_host = gpu is None or parameter_count(entry.config) <= SMALL
        sizes = memory_plan.precision(entry, cpu=on_host)
        needs.append(memory_plan.need(entry.name, *sizes, on_host=on_host))
    memory_plan.check(needs, memory_plan.empty_machine(gpu))


def status(requests: Sequence[Request]) -> int:
    """Prints the reports; 0 where all would open, else 1."""
    text, opens = check(requests)
    print(text)
    return 0 if opens else 1


if __name__ == "__main__":
    sys.exit(status([Request(**fields) for fields in json.loads(sys.argv[1])]))
