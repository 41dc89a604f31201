"""Faults chosen by hand, each with the few tests that should notice it: see `tests.mutants`.

By file: (what stands there, once in the file; what takes its place; the tests). The tests are a
file of `tests/`, or one with pytest's `-k` behind it.
"""

ENDS = "test_decoding.py -k row_ends or same_step"
DRAWN = "test_decoding.py -k drawn_from"
LIMIT = "test_decoding.py -k asked_for"
DRAFT = "test_decoding.py -k draft"
CONSTRAINT = "test_tokenizer.py -k whatever_is_drawn or too_many or halves"
GUIDED = "test_chunking.py -k authors"
HELD = "test_chunking.py -k (held or zero or cannot) and not 05"
RULES = "test_properties.py -k block_mask or docstring or right_alignment"
LAYOUT = "test_policy.py -k mask_is_openpis or goes_on or spread or averaged"
PROMPTS = "test_tokenizer.py -k prompt or newline or bins or any_text or halves"
ACTIONS = (
    "test_tokenizer.py -k fast_ or openpi or each_action or partial or halves or zeros_are "
    "or any_ids"
)
LEROBOT = "test_lerobot_policy.py"
NUMBERS = "test_transforms.py"
ROBOTS = "test_robots.py"
FLOW = "test_parity_flow.py -k time_embedding or norms or loss or (chunk and leftmasked)"
FAST = "test_parity_fast.py -k (loss or training or prefill or decoding_step) and (masked or lens)"
TRACE = "test_policy.py -k models_own or sample_is or black_is or robots_own or offsets"

SHARES = "test_guard_shares.py -k "
SESSIONS = "test_guard_sessions.py -k read_is_gone or message_held or nobody_reads or state_lasts"
QUEUE = (
    "test_queue.py -k who_sends_many or long_before or quarter or gives_way or pushes_nobody "
    "or who_took or pass or waited_for_the_event"
)
READERS = "test_strangers_files.py -k processes or wait or turn"
SPILLED = "test_spilled.py"

CHOSEN: dict[str, tuple[tuple[str, str, str], ...]] = {
    "models/decoding.py": (
        ("self.count + 1, token == EOS", "self.count + 1, token == EOS + 1", ENDS),
        ("done = self.done | ended |", "done = ended |", ENDS),
        ("(self.started & (token == stop.end))", "(token == stop.end)", ENDS),
        ("started = self.started | _ends_with", "started = _ends_with", ENDS),
        ("done=done, all_done=jnp.all(done)", "done=done, all_done=jnp.any(done)", ENDS),
        ("done=ended, all_done=jnp.all(ended)", "done=ended, all_done=jnp.any(ended)", ENDS),
        (
            "done=ended, all_done=jnp.all(ended)",
            "done=self.done | ended, all_done=jnp.all(self.done | ended)",
            ENDS,
        ),
        (
            "(self.count < self.limit) & ~self.all_done",
            "self.count < self.limit",
            ENDS,
        ),
        ("(padded, count, length, axis=1)", "(padded, count - 1, length, axis=1)", ENDS),
        (
            "(self.tokens, token[:, None], (0, self.count))",
            "(self.tokens, token[:, None], (0, 0))",
            ENDS,
        ),
        ("logits / temperature, axis", "logits * temperature, axis", DRAWN),
        ("jnp.maximum(options.temperature, LEAST_TEMPERATURE)", "options.temperature", DRAWN),
        ("jax.random.categorical(step_key,", "jax.random.categorical(key,", DRAWN),
        ("key, step_key = jax.random.split(key)", "step_key, key = jax.random.split(key)", DRAWN),
        ("(self.tokens, count - 1, axis=1", "(self.tokens, count, axis=1", DRAFT),
        (
            "agreed = jnp.all(jnp.isin(buffer.last, draft_ids))",
            "agreed = jnp.bool_(True)",
            DRAFT,
        ),
        ("step=state.step + count", "step=after.step", DRAFT),
        ("lambda c: c[1] & (c[2] < length), verify", "lambda c: c[2] < length, verify", DRAFT),
        ("hidden.at[count].set(output)", "hidden.at[0].set(output)", DRAFT),
        ("jnp.moveaxis(logits, 0, -1)", "jnp.flip(jnp.moveaxis(logits, 0, -1), 0)", DRAFT),
        ("jnp.full_like(state.logits, -jnp.inf)", "jnp.full_like(state.logits, jnp.inf)", DRAFT),
        ("completed + (constraint.missing[buffer.missing] > 0)", "completed", CONSTRAINT),
        ("(completed >= 0) & (taken <= left)", "(completed >= 0) & (taken < left)", CONSTRAINT),
        ("(completed >= 0) & (taken <= left)", "taken <= left", CONSTRAINT),
        (" - buffer.completed[:, None] % constraint.per_group", "", CONSTRAINT),
        ("((taken <= left_in_group) | constraint.zeros)", "(taken <= left_in_group)", CONSTRAINT),
        ("is_complete = left == 0", "is_complete = left < 0", CONSTRAINT),
        ("(self.count < self.limit)", "(self.count <= self.limit)", LIMIT),
        ("min(asked, max_steps) if whole else jnp.minimum(asked, max_steps)", "asked", LIMIT),
        ("jnp.minimum(buffer.count, len(constraint.start) - 1)", "0 * buffer.count", CONSTRAINT),
        ("fits | buffer.done[:, None]", "fits", CONSTRAINT),
        ("missing=jnp.where(in_chunk, missing, self.missing)", "missing=missing", CONSTRAINT),
        ("(token, self.started & ~done, options", "(token, started & ~done, options", CONSTRAINT),
        ("constraint.completed[self.missing, token]", "constraint.completed[0, token]", CONSTRAINT),
        ("ids == constraint.end, fits", "fits, fits", CONSTRAINT),
    ),
    "models/chunking.py": (
        ("delay, steps = min(delay, overlap),", "delay, steps = delay,", GUIDED),
        ("(steps - delay + 1) / ", "(steps - delay) / ", GUIDED),
        ("np.where(steps < overlap,", "np.where(steps <= overlap,", GUIDED),
        ("weights * np.expm1(weights) / (np.e - 1)", "weights**2", GUIDED),
        ("(steps < delay).astype", "(steps <= delay).astype", GUIDED),
        ("t**2 + (1 - t) ** 2", "t**2 - (1 - t) ** 2", GUIDED),
        ("/ (t * rest), max_guidance)", "/ (rest * rest), max_guidance)", GUIDED),
        ("jnp.minimum((t**2", "jnp.maximum((t**2", GUIDED),
        ("return x_t - t * v_t, v_t", "return x_t + t * v_t, v_t", GUIDED),
        ("pull_back((previous - x_0)", "pull_back((x_0 - previous)", GUIDED),
        (
            "(correction,) = pull_back((previous - x_0) * weights[:, None])",
            "correction = (previous - x_0) * weights[:, None]",
            GUIDED,
        ),
        ("not np.isfinite(previous).all() or ", "", HELD),
        ("weights.shape != noise.shape[1:2]", "False", HELD),
        ("if not weights.any():", "if weights.any():", HELD),
    ),
    "models/masks.py": (
        ("block[:, None, :] <= block", "block[:, None, :] < block", RULES),
        (" & input_mask[:, :, None]", "", RULES),
        ("in_reach & input_mask[:, None, :] &", "in_reach &", RULES),
        ("+ shift[:, None]) % length", "- shift[:, None]) % length", RULES),
        ("xp.arange(1, input_mask.shape[1] + 1,", "xp.arange(0, input_mask.shape[1],", RULES),
        ("1 if config.pi05 else 2", "2 if config.pi05 else 1", LAYOUT),
        (">= length - xp.sum", "> length - xp.sum", LAYOUT),
        ("place <= prefix_len + step", "place < prefix_len + step", LAYOUT),
        ("(place >= prefix_len) & ", "", LAYOUT),
    ),
    "playground/policies/token_layout.py": (
        ("if not config.pi05:", "if config.pi05:", LAYOUT),
        ('modes[slot] != "masked"', 'modes[slot] == "filled"', LAYOUT),
        ("np.where(both, BLOCKED, PADDING)", "np.where(both, PADDING, BLOCKED)", LAYOUT),
        ("config.prefix_len - int(shift[0])", "int(shift[0])", LAYOUT),
        (
            "steps = np.arange(len(written))[:, None]",
            "steps = np.arange(len(written))[:, None] + 1",
            LAYOUT,
        ),
        ("        if slot in slots\n", "        if slot not in slots\n", LAYOUT),
        ("weights.nbytes <= MAX_ATTENTION_BYTES", "weights.nbytes > MAX_ATTENTION_BYTES", LAYOUT),
        ("full[..., places] = moved", "full[..., : len(places)] = moved", LAYOUT),
    ),
    "models/tokenizer.py": (
        ('side="right"', 'side="left"', PROMPTS),
        ("np.linspace(-1, 1, STATE_BINS + 1)", "np.linspace(-1, 1, STATE_BINS)", PROMPTS),
        ("[:-1]\n", "[1:]\n", PROMPTS),
        (
            '[BOS, *self.encode(text), *self.encode("\\n")]',
            '[BOS, *self.encode(text + "\\n")]',
            PROMPTS,
        ),
        ('clean_prompt(prompt).replace("\\n", " ")', "clean_prompt(prompt)", PROMPTS),
        ('prompt.strip().replace("_", " ")', "prompt.strip()", PROMPTS),
        ('prompt.strip().replace("_", " ")', 'prompt.replace("_", " ")', PROMPTS),
        ('))};\\n"', '))}; "', PROMPTS),
        ("ids = [BOS, *self.encode(f", "ids = [*self.encode(f", PROMPTS),
        ("truncated=len(ids) - len(kept)", "truncated=len(ids)", PROMPTS),
        ("mask=padded([True] * len(kept)", "mask=padded([True] * (len(kept) - 1)", PROMPTS),
        ('"surrogatepass").decode', '"replace").decode', PROMPTS),
        (
            "if not 0 <= i < self.vocab_size",
            "if not 0 <= i <= self.vocab_size",
            "test_tokenizer.py -k bad_arguments",
        ),
        ('prompt if prompt.endswith("\\n") else prompt + "\\n"', 'prompt + "\\n"', LEROBOT),
    ),
    "models/fast_tokenizer.py": (
        (
            "return self.paligemma.vocab_size - 1 - NUM_SEG - token",
            "return self.paligemma.vocab_size - NUM_SEG - token",
            ACTIONS,
        ),
        ('scipy.fft.dct(chunk, axis=0, norm="ortho")', "scipy.fft.dct(chunk, axis=0)", ACTIONS),
        (
            'scipy.fft.dct(chunk, axis=0, norm="ortho")',
            'scipy.fft.dct(chunk, axis=1, norm="ortho")',
            ACTIONS,
        ),
        ("np.rint(np.asarray", "np.trunc(np.asarray", ACTIONS),
        ("codes = coefficients - self.min_token", "codes = coefficients + self.min_token", ACTIONS),
        ("[ord(character) + self.min_token", "[ord(character) - self.min_token", ACTIONS),
        (
            ".reshape(-1, horizon, dim) / self.scale",
            ".reshape(-1, dim, horizon).swapaxes(1, 2) / self.scale",
            ACTIONS,
        ),
        ("text = text.lower()", "text = text", PROMPTS),
        (".split(ACTION_MARKER)[0].split(ACTION_END)[0]", ".split(ACTION_MARKER)[0]", ACTIONS),
        (".split(ACTION_MARKER)[0].split(ACTION_END)[0]", ".split(ACTION_END)[0]", ACTIONS),
        ("position >= len(prefix) + len(start)", "position > len(prefix) + len(start)", PROMPTS),
        ("loss_mask=padded(in_postfix,", "loss_mask=padded([True] * len(kept),", PROMPTS),
        ("*ids, *encode(ACTION_END), EOS]", "*ids, *encode(ACTION_END)]", PROMPTS),
        ("zeros[token] = not any", "zeros[token] = any", ACTIONS),
        ("dim if self.fast.row == dim else horizon * dim", "dim", CONSTRAINT),
        ("if i >= self.vocab_size)", "if i > self.vocab_size)", ACTIONS),
        ("if len(text) != expected:", "if len(text) < expected:", ACTIONS),
        ("if token > UNK]", "if token >= UNK]", LEROBOT),
        ("rest[: _find(end, rest)]", "rest", LEROBOT),
        (
            'text, start = text.replace("\\n", " "), [BOS]',
            'text, start = text.replace("\\n", " "), []',
            LEROBOT,
        ),
    ),
    "playground/robots/transforms.py": (
        (
            'if image.format in _JPEG and data.count(b"\\xff\\xda") > _MAX_SCANS:',
            "if False:",
            "test_strangers_files.py -k scans",
        ),
        (
            "    *(TypeError, AttributeError, ArithmeticError),\n",
            "",
            "test_strangers_files.py -k exif",
        ),
        (
            "return _shifted(actions, state, mask, -1)",
            "return _shifted(actions, state, mask, 1)",
            NUMBERS,
        ),
        (
            "sign * np.where(mask, state[..., None, :dims], 0)",
            "sign * state[..., None, :dims]",
            NUMBERS,
        ),
        ("[(0, missing)]", "[(missing, 0)]", NUMBERS),
        ("Image.Resampling.BILINEAR", "Image.Resampling.BICUBIC", NUMBERS),
        ("ratio = max(image_width", "ratio = min(image_width", NUMBERS),
        ("np.int64) >> 8", "np.int64) >> 7", NUMBERS),
        ("np.trunc(picture * 255)", "np.rint(picture * 255)", NUMBERS),
        ("_rgb(ImageOps.exif_transpose(image))", "_rgb(image)", NUMBERS),
        ('image.size, "black")', 'image.size, "white")', NUMBERS),
        ("for axis in (0, -1) if", "for axis in (-1,) if", NUMBERS),
    ),
    "playground/robots/aloha.py": (
        ("[1, -1, -1, 1, 1, 1, 1]", "[1, 1, -1, 1, 1, 1, 1]", ROBOTS),
        (
            "actions[..., _GRIPPERS] + _PI_RANGE[0]",
            "actions[..., _GRIPPERS] - _PI_RANGE[0]",
            ROBOTS,
        ),
        ("np.clip(sine, -1, 1)", "sine", ROBOTS),
        ("_GRIPPERS = [6, 13]", "_GRIPPERS = [6, 12]", ROBOTS),
        ("_HORN_RADIUS**2 + fingers**2", "_HORN_RADIUS**2 - fingers**2", ROBOTS),
    ),
    "playground/robots/norm_stats.py": (
        ("np.array(stats.std) + EPSILON", "np.array(stats.std)", NUMBERS),
        ("np.array(stats.q99) - low + EPSILON", "np.array(stats.q99) - low", NUMBERS),
        ("return (values - low) / span * 2 - 1", "return (values - low) / span * 2", NUMBERS),
        ("return (values + 1) / 2 * span + low", "return (values - 1) / 2 * span + low", NUMBERS),
        ("rows.var(0) * len(rows) +", "rows.var(0) +", NUMBERS),
        ("difference**2 * self._count * len(rows) / total", "0", NUMBERS),
        (
            "np.sqrt(self._squares / self._count)",
            "np.sqrt(self._squares / (self._count - 1))",
            NUMBERS,
        ),
    ),
    "playground/robots/conversion.py": (
        ("np.asarray(actions)[..., :dims]", "np.asarray(actions)[..., -dims:]", ROBOTS),
        (
            "(actions, robot.state_to_model(state), robot.offsets)",
            "(actions, state, robot.offsets)",
            ROBOTS,
        ),
        ('flat.get("prompt", default_prompt)', 'flat.get("prompt")', ROBOTS),
        (
            "normalise(robot.state_to_model(state), stats, method)",
            "normalise(state, stats, method)",
            ROBOTS,
        ),
    ),
    "playground/policies/flow.py": (
        ("self.to_robot(x[:-1] - time * v, raw)", "self.to_robot(x[:-1] + time * v, raw)", TRACE),
        ("1 - step / options.num_steps", "1 - (step - 1) / options.num_steps", TRACE),
        (
            'return prepared.modes[slot] != "masked"',
            'return prepared.modes[slot] == "filled"',
            TRACE,
        ),
        ("v_t=np.stack(v_t)", "v_t=np.stack(v_t[::-1])", TRACE),
        (
            "actions_normalised=final[..., : len(self.info.actions)]",
            "actions_normalised=final",
            TRACE,
        ),
    ),
    "playground/policies/base.py": (
        (
            "if compiled.num_programs() > compiled.MAX_PROGRAMS:",
            "if False:",
            "test_policy.py -k visitors_choose",
        ),
        ("self._compiled.clear()", "pass", "test_policy.py -k visitors_choose"),
        (
            "state = np.zeros(config.action_dim)",
            "state = transforms.pad(prepared.state, config.action_dim)",
            LEROBOT,
        ),
        (
            "np.pad(given.state, (0, missing))",
            "np.pad(given.state, (0, 32 - len(given.state)))",
            TRACE,
        ),
    ),
    "models/pi0.py": (
        ("x_t + (-1.0 / num_steps) * v_t", "x_t + (1.0 / num_steps) * v_t", GUIDED),
        ("return x_next, (x_next, v_t,", "return x_next, (x_t, v_t,", GUIDED),
        ("[jnp.sin(angle), jnp.cos(angle)]", "[jnp.cos(angle), jnp.sin(angle)]", FLOW),
        ("4e-3 * (4.0 / 4e-3) ** fraction", "4e-3 * (4.0 / 4e-3) ** (fraction**2)", FLOW),
        ("jnp.square(v_t - (noise - actions))", "jnp.square(v_t - (actions - noise))", FLOW),
        ("t * noise + (1 - t) * actions", "t * actions + (1 - t) * noise", FLOW),
        ("[actions, time], axis=-1", "[time, actions], axis=-1", FLOW),
        (
            "suffix_out[:, -self.config.action_horizon :]",
            "suffix_out[:, : self.config.action_horizon]",
            FLOW,
        ),
        ("prefix.first_position[:, None] + masks.positions", "masks.positions", FLOW),
        ("x_t + (-1.0 / num_steps) * v_t", "x_t + (1.0 / num_steps) * v_t", FLOW),
    ),
    "models/gemma.py": (
        ("keepdims=True) + 1e-6", "keepdims=True) + 1e-3", FLOW),
        ("(_normalise(x) * (1 + self.scale[...]))", "(_normalise(x) * self.scale[...])", FLOW),
        ("[first * cos - second * sin,", "[first * cos + second * sin,", FLOW),
        (
            "nnx.gelu(dot(x, self.gate), approximate=True)",
            "nnx.gelu(dot(x, self.up), approximate=True)",
            FLOW,
        ),
        ("(rows * jnp.sqrt(rows.shape[-1]).astype(rows.dtype))", "rows", FLOW),
        ("self.dtype)) * q.shape[-1] ** -0.5", "self.dtype)) / q.shape[-1]", FLOW),
    ),
    "models/pi0_fast.py": (
        ('return 1 if self.config.convention == "openpi" else 0', "return 0", FAST),
        ("jnp.maximum(jnp.sum(loss_mask, axis=-1), 1)", "loss_mask.shape[-1]", FAST),
        ("(state.first_position + state.step)[:, None]", "state.first_position[:, None]", FAST),
        ("start=state.prefix_len + state.step", "start=state.prefix_len", FAST),
        ("(logp, observation.tokens[:, 1:, None]", "(logp, observation.tokens[:, :-1, None]", FAST),
        (
            "jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape[:2])",
            "masks.positions(embedded.input_mask[:, :-1])",
            FAST,
        ),
    ),
    # What holds strangers, taken out again.
    "playground/ui/guard/visitors.py": (
        ("if found.is_loopback:", "if False:", SHARES + "told_apart"),
        ('os.environ.get("SPACE_HOST") and', "False and", SHARES + "space"),
        (
            "str(ipaddress.ip_network((found, _NETWORK), strict=False))",
            "str(found)",
            SHARES + "told_apart",
        ),
    ),
    "playground/ui/guard/shares.py": (
        (
            "if own >= self._bounds.each or self._open.total() >= self._bounds.all:",
            "if False:",
            SHARES + "holds_few",
        ),
        (
            "own >= self._bounds.each or self._open.total()",
            "self._open.total()",
            SHARES + "holds_few",
        ),
        (
            "if own >= self._bounds.each or self._sizes.total() >= self._bounds.all:",
            "if False:",
            SHARES + "uploads",
        ),
        ("self._sizes[owner] -= size", "pass", SHARES + "uploads"),
        ("if entry.is_file() and time.time()", "if False and time.time()", SHARES + "parts"),
        (
            "if entry.is_file() and time.time() - entry.stat().st_mtime > _PART_S:",
            "if entry.is_file():",
            SHARES + "parts",
        ),
    ),
    "playground/ui/guard/present.py": (
        ("        self[who] -= 1", "        pass", SHARES + "holds_few"),
    ),
    "playground/ui/guard/connections.py": (
        (
            "self._head = self.loop.call_later(head_s, self.transport.abort)",
            "pass",
            SHARES + "half_sent",
        ),
        (
            "self._stall = self.loop.call_later(stall_s, self.transport.abort)",
            "pass",
            SHARES + "not_read",
        ),
        (
            "if self.cycle is not None and not self.cycle.response_complete:",
            "if False:",
            SHARES + "longer_than",
        ),
        (
            "            self._stall = _stopped(self._stall)\n            super().resume_writing()",
            "            super().resume_writing()",
            SHARES + "wait_that_is_over",
        ),
    ),
    "playground/ui/guard/sessions.py": (
        ("    app.state_holder = Sessions()\n", "", SESSIONS),
        (
            "= Mailboxes(page._queue.pending_event_ids_session)",
            "= page._queue.pending_messages_per_session",
            SESSIONS,
        ),
        ("        self.config_values.clear()\n", "        pass\n", SESSIONS),
    ),
    "playground/serving/queue.py": (
        ("_TURN_S * max(0, len(own) + 1 - _AT_ONCE)", "0.0", QUEUE),
        ("len(own) >= most or _too_large(own", "_too_large(own", QUEUE),
        ("_too_large(own, ticket, MAX_WAITING_BYTES // _SHARE)", "False", QUEUE),
        ("last = _last_of_most(alike, len(own))", "last = None", QUEUE),
        ("most <= max(_AT_ONCE, own + 1)", "most <= own + 1", QUEUE),
        ("most <= max(_AT_ONCE, own + 1)", "most <= _AT_ONCE", QUEUE),
        ("for t in waiting if t.owner)", "for t in waiting)", QUEUE),
        ("late_s = self._late_s(owner, time.monotonic())", "late_s = 0.0", QUEUE),
        ("min(LATEST_S, len(others) *", "(len(others) *", QUEUE),
        ("max(_FREE_S, 2 * mean_s)", "_FREE_S", QUEUE),
        ("used_s * 0.5 ** ((now - then) / HALF_LIFE_S)", "used_s", QUEUE),
        ("elif short := self._short(slot, slot.running):", "elif short := None:", QUEUE),
        ("PASSING * own_s - running.passed_s", "PASSING * own_s", QUEUE),
        ("min(long_s / _TIMES,", "min(long_s,", QUEUE),
        ("behind.passed_s += now - ticket.started", "pass", QUEUE),
        ('other = ticket.owner not in ("", running.owner)', "other = True", QUEUE),
        ("slot.within.started = time.monotonic()", "pass", QUEUE),
    ),
    "playground/ui/results.py": (
        (
            "max(older, key=lambda key: shares[self._kept[key].owner])",
            "older[0]",
            "test_ui.py -k push_out",
        ),
        (
            "sum(4 * len(json.dumps(tree))",
            "sum(0 * len(json.dumps(tree))",
            "test_ui.py -k what_they_cost",
        ),
    ),
    "playground/ui/decoding.py": (
        ("max(1, processes - 1)", "processes", READERS),
        (
            "(visitor and len(own) + self._read[visitor] >= self._each) or every >= self._all",
            "every >= self._all",
            READERS,
        ),
        ("next(able, None) is file", "True", READERS),
    ),
    "playground/spilled.py": (
        ("if at_once or self.size <= LARGE:", "if True:", SPILLED),
        ("if at_once or self.size <= LARGE:", "if self.size <= LARGE:", SPILLED),
        ("mapping.madvise(mmap.MADV_DONTNEED)", "pass", SPILLED),
        ("if values.nbytes <= LARGE:", "if True:", SPILLED),
    ),
    "playground/ui/guard/files.py": (
        (
            'if not (well and self.is_known(file.get("path"))):',
            "if False:",
            "test_guard.py -k handed_out",
        ),
    ),
    "playground/ui/guard/hosts.py": (
        (
            "if not (_HOST.fullmatch(host) and self._is_own(_name(host))):",
            "if False:",
            "test_guard.py -k own_names",
        ),
        (
            "not self._is_origin_own(origin, reached)",
            "False",
            "test_guard.py -k another_website",
        ),
    ),
    "playground/ui/guard/headers.py": (
        (
            'if name.startswith("access-control-")]',
            "if False]",
            "test_guard.py -k whatever_gradio_says",
        ),
    ),
    "playground/ui/guard/messages.py": (
        (
            'if sum(map(body.count, (b",", b"[", b"{", b":"))) > MAX_VALUES:',
            "if False:",
            "test_guard.py -k not_well",
        ),
        ("if len(found) > MAX_FILES:", "if False:", "test_guard.py -k few_files"),
        ("if len(body) > MAX_BYTES:", "if False:", "test_guard.py -k not_well or end"),
        ('if b"\\\\ud" in body.lower()', "if False", "test_guard.py -k not_well"),
    ),
    "playground/ui/guard/functions.py": (
        ("_is_number(value) and -_LARGEST <= value <= _LARGEST", "True", "test_guard.py -k is_of"),
        (
            "if unknown := sorted(given.keys() - parameters.keys()):",
            "if False:",
            "test_guard.py -k own_values_alone",
        ),
    ),
    "playground/ui/guard/door.py": (
        (
            "held.enter_context(making.one(_address(scope)))",
            "pass",
            "test_guard.py -k large_answers",
        ),
        ('self._check_call(params["event_id"])', "pass", "test_guard_sessions.py"),
        ("passed_on = _on_behalf(passed_on, scope)", "pass", "test_guard.py -k whoever_asked"),
    ),
    "playground/run_file.py": (
        (
            "codec.check_members(archive, _MAX_MEMBERS, codec.MAX_UNPACKED)",
            "pass",
            "test_strangers_files.py -k bounded",
        ),
        ("    if pixels > MAX_PIXELS:", "    if False:", "test_strangers_files.py -k bounded"),
        ("if height * width <= pixels else None", "", "test_recipe.py -k opens_again"),
        ("if data is not None and len(data) <= room:", "if data:", "test_recipe.py -k opens_again"),
    ),
}
