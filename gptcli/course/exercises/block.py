"""The lesson on the transformer block: its four steps and its bank of known mistakes.

Dimensions: B batch, T time, C channels (n_embd). The functions in `forms` of MISTAKES take w and x.
w.n1, w.attn, w.n2 and w.mlp are the learner's submodules, each as a Part, and x (B, T, C) is the
input.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from gptcli.course.exercises.explainer import ExerciseMistake
from gptcli.course.exercises.learner_module import (
    LearnerModule,
    ModuleLesson,
    Run,
    Size,
    close,
    general_mistakes,
)
from gptcli.course.exercises.tensor_trace import TensorTrace
from gptcli.course.lesson import CheckFailed, Step

Weights = Any
NAMES = {
    "n1": ("ln_1", "ln1", "norm1", "norm_1", "layernorm1", "layernorm_1", "input_layernorm"),
    "n2": ("ln_2", "ln2", "norm2", "norm_2", "layernorm2", "layernorm_2"),
    "attn": ("attn", "attention", "self_attn", "sa", "self_attention"),
    "mlp": ("mlp", "ffn", "ff", "ffwd", "feed_forward", "feedforward"),
}

MLP_CALL = r"(mlp|ffn?|ffwd|feed_?forward)\("
ATTENTION_CALL = r"(attn|attention|\bsa)\("

STEPS = (
    Step(
        "first norm",
        "what does the attention read: x, or x after a norm?",
        "pre-norm: the attention reads the output of the first norm, and x itself stays as it is",
        "pass self.ln_1(x) to the attention, and keep x for the sum",
    ),
    Step(
        "attention and residual",
        "what is the attention's output added to?",
        "add the attention's output to the x that came in, not to the normed x",
        "store the sum as the new x; the second half continues with it",
    ),
    Step(
        "second norm",
        "which tensor does the second half normalise, and with which of the two norms?",
        "the second half has its own norm, applied to the sum after the attention",
        "pass self.ln_2 of the new x to the feed-forward network",
    ),
    Step(
        "feed-forward and residual",
        "what is the feed-forward network's output added to, and what comes after this sum?",
        "the block's output is the sum after the attention plus the feed-forward network's output",
        "return the new x plus self.mlp of the normed new x, without a norm after the sum",
    ),
)


class Part:
    """One submodule of a learner's block, as a function of one tensor.

    A Part passes this tensor to the submodule. All other arguments are those that the learner's
    forward passed to the submodule in the first call. The submodule can also be an
    nn.MultiheadAttention, which takes x three times and returns two tensors. For each call by the
    learner's forward, `inputs` has the first 3-D tensor among the arguments."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.inputs: list[Tensor] = []
        self._call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._replays = False
        module.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.dim() == 3]
        if self._replays or not tensors:
            return
        if self._call is None:
            self._call = args, kwargs
        with torch._C.DisableTorchFunction():  # a trace must record only the learner's operations
            self.inputs.append(tensors[0].detach().clone())

    def __call__(self, h: Tensor) -> Tensor:
        """The output of the submodule for h (B, T, C)."""
        turned = (h.shape[1], h.shape[0], h.shape[2])  # (T, B, C): default of MultiheadAttention
        args, kwargs = self._call or ((h,), {})

        def put(value: Any) -> Any:
            if isinstance(value, Tensor) and value.is_floating_point():
                if value.shape == h.shape:
                    return h
                if value.shape == turned:
                    return h.transpose(0, 1)
            return value

        self._replays = True
        try:
            if self._call is None and isinstance(self.module, nn.MultiheadAttention):
                args = (h, h, h)
            out = self.module(*map(put, args), **{key: put(v) for key, v in kwargs.items()})
        finally:
            self._replays = False
        out = out[0] if isinstance(out, (tuple, list)) else out
        result: Tensor = out.transpose(0, 1) if out.shape == turned != h.shape else out
        return result


def steps(w: Weights, x: Tensor) -> Iterator[list[Tensor]]:
    """Yield the correct result of each step. Stops at a step whose submodule the block lacks."""
    if w.n1 is None:
        return
    first = w.n1(x)
    yield [first]
    if w.attn is None:
        return
    h = x + w.attn(first)
    yield [h]
    second = w.n2(h)
    yield [second]
    if w.mlp is None:
        return
    yield [h + w.mlp(second)]


def first_wrong(run: Run) -> int | None:
    """The number of the first wrong step, found by what each submodule reads and by the output."""
    w, x = run.weights, run.x
    marks = run.landmarks
    if not marks:
        return 1

    def reads(part: Part, wanted: Tensor) -> bool:
        """Whether `part` got `wanted` as an input, either as (B, T, C) or as (T, B, C)."""
        return any(
            close(each, wanted) or close(each, wanted.transpose(0, 1)) for each in part.inputs
        )

    (first,) = marks[0]
    if w.attn is None or not w.attn.inputs:
        return 2 if reads(w.n1, x) else 1
    if not reads(w.attn, first):
        return 1
    (h,) = marks[1]
    if not reads(w.n2, h):
        halves = [x, first, h - x]
        others = w.n2.inputs[-1:] if w.n2 is not w.n1 else w.n2.inputs[1:]
        if any(close(each, one) for each in others for one in halves):
            return 3
        if w.n1.inputs[1:] and any(close(each, h) for each in w.n1.inputs[1:]):
            return 3  # forward calls the first norm again
        return 3 if not others and run.trace.has(h) and _keeps(run, h) else 2
    (second,) = marks[2]
    if w.mlp is not None and w.mlp.inputs and not reads(w.mlp, second):
        return 3
    return 4


def _keeps(run: Run, h: Tensor) -> bool:
    """Whether the MLP reads h, the sum after the attention, without a norm.

    If no MLP runs, returns whether the output is h."""
    mlp = run.weights.mlp
    if mlp is None or not mlp.inputs:
        return close(run.y, h)
    return any(close(each, h) for each in mlp.inputs)


def _h(w: Weights, x: Tensor) -> Tensor:
    out: Tensor = x + w.attn(w.n1(x))
    return out


def _then(w: Weights, h: Tensor) -> Tensor:
    """The block's output if its first half gives h, and its second half is correct."""
    out: Tensor = h + w.mlp(w.n2(h))
    return out


# fmt: off
MISTAKES = (
    ExerciseMistake("missing-attention", 2, "a block without an attention",
            "your block has no attention among its submodules: {have}",
            "a block has two norms, an attention and a feed-forward network",
            "make self.attn in the constructor", at=r"def __init__"),
    ExerciseMistake("missing-mlp", 4, "a block without a feed-forward network",
            "your block has no feed-forward network among its submodules: {have}",
            "a block has two norms, an attention and a feed-forward network",
            "make self.mlp in the constructor", at=r"def __init__"),
    ExerciseMistake("missing-norm", 1, "a block without norms",
            "your block has {count} norms among its submodules, expected 2: {have}",
            "each half has its own norm", "make self.ln_1 and self.ln_2 in the constructor",
            at=r"def __init__"),
    ExerciseMistake("shared-norm", 3, "self.ln_2 = self.ln_1, or one self.ln for both",
            "the two halves of your block have only one norm of {C} channels: {have}",
            "the two halves read different values, so each needs its own gain",
            "make two norms in the constructor", at=r"ln_?2|norm_?2|self\.(ln|norm)\b"),
    ExerciseMistake("post-norm", 1, "x = self.ln_1(x + self.attn(x))",
            "your first norm of {C} channels comes after the sum, not before the attention",
            "the transformer of 2017 normalises the sums; GPT-2 normalises the input of each "
            "branch, so x passes unchanged",
            "norm the input of the branch, not the sum", (
                lambda w, x: w.n2((h := w.n1(x + w.attn(x))) + w.mlp(h)),
                lambda w, x: _then(w, w.n1(x + w.attn(x)))), at=r"(ln|norm)_?\d\(x \+"),
    ExerciseMistake("branch-normed", 1, "x = x + self.ln_1(self.attn(x))",
            "your attention reads x of {C} channels without a norm, and your norm comes after the "
            "attention",
            "the norm belongs on the input of the branch",
            "apply the norm first, then the attention",
            (lambda w, x: (h := x + w.n1(w.attn(x))) + w.n2(w.mlp(h)),
             lambda w, x: _then(w, x + w.n1(w.attn(x)))), at=r"(ln|norm)_?\d\(self\."),
    ExerciseMistake("no-norms", 1, "x = x + self.attn(x); x = x + self.mlp(x)",
            "neither of your norms of {C} channels is used",
            "without norms, deep networks are hard to train",
            "norm the input of each branch",
            (lambda w, x: (h := x + w.attn(x)) + w.mlp(h),), at=r"(attn|attention|sa)\(x"),
    ExerciseMistake("no-first-norm", 1, "x = x + self.attn(x)",
            "your attention reads x of {C} channels without a norm",
            "the attention must read the output of the first norm",
            "norm the input of the attention", (lambda w, x: _then(w, x + w.attn(x)),),
            at=r"(attn|attention)\(x"),
    ExerciseMistake("norms-swapped", 1, "self.attn(self.ln_2(x))",
            "your norms of {C} channels are swapped: ln_2 comes before the attention",
            "each half has its own norm; with swapped norms, the weights of a trained model do not "
            "fit",
            "use ln_1 for the attention, and ln_2 for the feed-forward network",
            (lambda w, x: (h := x + w.attn(w.n2(x))) + w.mlp(w.n1(h)),), at=r"ln_?2\(x\)|norm_?2"),
    ExerciseMistake("mlp-first", 1, "the feed-forward network before the attention",
            "your feed-forward network comes first, and your attention of {C} channels second",
            "first the tokens look at each other, then each token is processed separately",
            "put the half with the attention first",
            (lambda w, x: (h := x + w.mlp(w.n2(x))) + w.attn(w.n1(h)),
             lambda w, x: (h := x + w.mlp(w.n1(x))) + w.attn(w.n2(h))), at=MLP_CALL),
    ExerciseMistake("no-residuals", 2, "x = self.attn(self.ln_1(x)); x = self.mlp(self.ln_2(x))",
            "neither of your branches of {C} channels is added to its input",
            "without residual connections, the signal and the gradients fade in a deep network",
            "add each branch to x", (lambda w, x: w.mlp(w.n2(w.attn(w.n1(x)))),),
            at=ATTENTION_CALL),
    ExerciseMistake("no-first-residual", 2, "x = self.attn(self.ln_1(x))",
            "your attention's output of {C} channels replaces x instead of being added to it",
            "x itself is lost", "add the attention to x",
            (lambda w, x: _then(w, w.attn(w.n1(x))),), at=ATTENTION_CALL),
    ExerciseMistake("residual-from-norm", 2, "x = self.ln_1(x); x = x + self.attn(x)",
            "you add the attention to the normed x of {C} channels, not to x itself",
            "the residual stream must pass through the block unchanged",
            "keep x, and store the normed x under another name",
            (lambda w, x: _then(w, (n := w.n1(x)) + w.attn(n)),
             lambda w, x: (m := w.n2((n := w.n1(x)) + w.attn(n))) + w.mlp(m)),
            at=r"x\s*=\s*self\.(ln|norm)"),
    ExerciseMistake("no-first-half", 1, "only the second half in forward",
            "your first norm and your attention, of {C} channels, are not used",
            "the tokens cannot see each other", "begin with the first norm and the attention",
            (lambda w, x: _then(w, x), lambda w, x: w.mlp(w.n2(x))), at=MLP_CALL + "|return"),
    ExerciseMistake("no-attention", 2, "the attention left out of forward",
            "your attention of {C} channels is never used", "the tokens cannot see each other",
            "add the attention of the normed x to x",
            (lambda w, x: _then(w, x + w.n1(x)), lambda w, x: _then(w, w.n1(x))),
            at=r"(ln|norm)_?1"),
    ExerciseMistake("nothing-done", 1,
            "return x", "your forward returns its input x of {C} channels unchanged",
            "both halves are missing", "begin with the first norm", (lambda w, x: x,),
            at=r"return"),
    ExerciseMistake("attention-twice", 2, "x = x + 2 * ..., or the first half done twice",
            "your attention, of {C} channels, is added twice",
            "a block adds the attention's output once",
            "look for a second addition, or for a factor",
            (lambda w, x: _then(w, x + 2 * w.attn(w.n1(x))),
             lambda w, x: _then(w, (h := _h(w, x)) + w.attn(w.n1(h)))), at=ATTENTION_CALL),
    ExerciseMistake("residual-doubled", 2, "x = x + x + self.attn(...)",
            "you add x of {C} channels twice", "each block would double the residual stream",
            "add x once", (lambda w, x: _then(w, x + _h(w, x)),), at=r"\+"),
    ExerciseMistake("first-norm-again", 3, "self.mlp(self.ln_1(x))",
            "you use the first norm of {C} channels in both halves, and never use the second",
            "the second half has its own norm", "use ln_2 in the second half",
            (lambda w, x: (h := _h(w, x)) + w.mlp(w.n1(h)),), at=MLP_CALL),
    ExerciseMistake("no-second-norm", 3, "x = x + self.mlp(x)",
            "your feed-forward network reads the {C} channels without a norm",
            "the feed-forward network must read the output of the second norm",
            "apply ln_2 to the input of the feed-forward network",
            (lambda w, x: (h := _h(w, x)) + w.mlp(h),), at=MLP_CALL),
    ExerciseMistake("second-branch-normed", 3, "x = x + self.ln_2(self.mlp(x))",
            "your second norm of {C} channels comes after the feed-forward network",
            "the norm belongs on the input of the branch", "apply the norm first, then the branch",
            (lambda w, x: (h := _h(w, x)) + w.n2(w.mlp(h)),), at=r"ln_?2\(self|norm_?2"),
    ExerciseMistake("parallel", 3, "x + self.attn(self.ln_1(x)) + self.mlp(self.ln_2(x))",
            "your second half reads x of {C} channels as it was before the attention",
            "the second half must read the output of the first half",
            "add the attention to x first, then norm the sum",
            (lambda w, x: _h(w, x) + w.mlp(w.n2(x)),
             lambda w, x: _h(w, x) + w.mlp(w.n1(x))), at=MLP_CALL),
    ExerciseMistake("attention-normed-again", 3, "self.mlp(self.ln_2(attention output))",
            "your second half reads only the attention's output of {C} channels, without x",
            "the second half should read the sum of x and the attention's output", "norm the sum",
            (lambda w, x: (h := _h(w, x)) + w.mlp(w.n2(h - x)),
             lambda w, x: x + w.mlp(w.n2(w.attn(w.n1(x))))), at=MLP_CALL),
    ExerciseMistake("no-second-residual", 4, "x = self.mlp(self.ln_2(x))",
            "your feed-forward output of {C} channels replaces x instead of being added to it",
            "x and the attention's output are lost",
            "add the feed-forward output to the sum after the attention",
            (lambda w, x: w.mlp(w.n2(_h(w, x))),), at=MLP_CALL),
    ExerciseMistake("second-residual-from-norm", 4, "h = self.ln_2(x); return h + self.mlp(h)",
            "you add the feed-forward output to the normed {C} channels, not to the sum itself",
            "the residual stream must pass through the block unchanged",
            "keep the sum, and store the normed sum under another name",
            (lambda w, x: (m := w.n2(_h(w, x))) + w.mlp(m),), at=r"ln_?2\("),
    ExerciseMistake("second-residual-from-x", 4, "return x + self.mlp(...) with the first x",
            "you add the feed-forward output to the block's input of {C} channels",
            "the attention's output is lost",
            "add the feed-forward output to the sum after the attention",
            (lambda w, x: x + w.mlp(w.n2(_h(w, x))),), at=r"return"),
    ExerciseMistake("no-second-half", 3, "a forward that ends after the attention",
            "your forward ends after the attention: neither the second norm nor the feed-forward "
            "network, of {C} channels, is used", "each token must also be processed by itself",
            "norm the sum, apply the feed-forward network, and add its output to the sum",
            (lambda w, x: _h(w, x), lambda w, x: w.attn(w.n1(x))), at=r"return"),
    ExerciseMistake("sum-scaled", 2, "(x + self.attn(...)) / 2",
            "you scale the sum of x and the attention's output, of {C} channels",
            "the residual stream must pass through the block unchanged",
            "add x and the attention's output, without a factor", (
                lambda w, x: 0.5 * (_then(w, 0.5 * _h(w, x))),
                lambda w, x: _then(w, 0.5 * _h(w, x)),
                lambda w, x: _then(w, 2**-0.5 * _h(w, x)),
                lambda w, x: 2**-0.5 * _then(w, 2**-0.5 * _h(w, x))), at=r"/|\*|mean|sqrt"),
    ExerciseMistake("second-sum-scaled", 4, "return (x + self.mlp(...)) / 2",
            "you scale the block's output of {C} channels",
            "the residual stream must pass through the block unchanged",
            "return the sum, without a factor", (
                lambda w, x: 0.5 * _then(w, _h(w, x)), lambda w, x: 2**-0.5 * _then(w, _h(w, x))),
            at=r"/|\*|mean|sqrt"),
    ExerciseMistake("no-mlp", 4, "the feed-forward network left out of forward",
            "your output of {C} channels does not contain the result of your feed-forward network",
            "each token must also be processed by itself", "add self.mlp of the normed sum",
            (lambda w, x: w.n2(_h(w, x)), lambda w, x: (h := _h(w, x)) + w.n2(h)),
            at=r"return"),
    ExerciseMistake("norm-at-the-end", 4, "return self.ln_2(x)",
            "your block ends with one more norm of {C} channels",
            "the residual stream must pass through the block unchanged; the model has one norm at "
            "its very end", "return the sum without a norm",
            (lambda w, x: w.n2(_then(w, _h(w, x))), lambda w, x: w.n1(_then(w, _h(w, x)))),
            at=r"return"),
    *general_mistakes(4, dropout_step=2),
)
# fmt: on


def weights(learner: LearnerModule, module: nn.Module, size: Size) -> Weights:
    """The learner's norms, attention and MLP, found by name or else by the shapes of the weights.

    Each is a Part. `attn` is None if the block has no attention, and `mlp` is None if it has no
    MLP. `n1` is `n2` if the block has only one norm. `start` reports these faults. Raises
    CheckFailed if the block has no norm."""
    children = dict(_children(module))
    found: dict[str, nn.Module] = {}
    for role, names in NAMES.items():
        for name in names:
            if role not in found and isinstance(children.get(name), nn.Module):
                found[role] = children[name]
    taken = {id(part) for part in found.values()}
    rest = [part for part in children.values() if id(part) not in taken]
    norms = [p for p in rest if (q := list(p.parameters())) and all(t.dim() == 1 for t in q)]
    others = [p for p in rest if any(t.dim() > 1 for t in p.parameters())]
    for role in ("n1", "n2"):
        if role not in found and norms:
            found[role] = norms.pop(0)
    wide = [p for p in others if any(max(t.shape) >= 4 * size.C for t in p.parameters())]
    if "mlp" not in found and wide:
        found["mlp"] = wide[0]
    narrow = [p for p in others if p is not found.get("mlp")]
    if "attn" not in found and narrow:
        found["attn"] = narrow[0]
    if "n1" not in found and "n2" not in found:
        raise learner.mistake(
            "missing-norm", within=learner.constructor, count=0, have=_in_words(module)
        )
    for role, other in (("n1", "n2"), ("n2", "n1")):
        found.setdefault(role, found[other]) if other in found else None
    parts = {id(part): Part(part) for part in found.values()}
    roles = {role: parts[id(found[role])] if role in found else None for role in NAMES}
    return SimpleNamespace(**roles)


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The submodules of `module` with their names.

    If a submodule is an nn.Sequential that begins with a norm, yields the parts of the Sequential
    instead."""
    for name, part in module.named_children():
        inner = list(part.children()) if isinstance(part, nn.Sequential) else []
        first = list(inner[0].parameters()) if inner else []
        if first and all(t.dim() == 1 for t in first):
            yield from ((f"{name}.{key}", each) for key, each in part.named_children())
        else:
            yield name, part
    # self.ln_2 = self.ln_1 is one submodule with two names.
    for name, value in vars(module).get("_modules", {}).items():
        if value is not None and name not in dict(module.named_children()):
            yield name, value


def _in_words(module: nn.Module) -> str:
    children = module.named_children()
    return ", ".join(f"`{n}` ({type(m).__name__})" for n, m in children) or "none"


def start(learner: LearnerModule) -> Iterator[CheckFailed]:
    """Yield the faults of the constructor: no attention, no MLP, or one norm in both halves."""
    size = SIZES[0]
    module = learner.construct(size)
    w = weights(learner, module, size)
    have = _in_words(module)
    lines = learner.constructor
    for role, slug in (("attn", "missing-attention"), ("mlp", "missing-mlp")):
        if getattr(w, role) is None:
            yield learner.mistake(slug, within=lines, have=have)
    if w.n1 is w.n2 and _calls_of_norm(learner, module, w, size) != 1:
        yield learner.mistake("shared-norm", within=lines, C=size.C, have=have)


def _calls_of_norm(learner: LearnerModule, module: nn.Module, w: Weights, size: Size) -> int:
    """How often forward calls the block's only norm; 0 if forward fails."""
    x = draw(size, torch.Generator().manual_seed(1))
    try:
        with torch.no_grad():
            learner.run(module, w, x, TensorTrace(learner.file.path, module))
    except CheckFailed:
        return 0
    return len(w.n1.inputs)


def draw(size: Size, generator: torch.Generator) -> Tensor:
    """A random x whose mean is not 0 and whose scale is not 1, so that a norm changes it."""
    return 1.7 * torch.randn(size.B, size.T, size.C, generator=generator, dtype=torch.float64) + 0.4


def train(learner: LearnerModule) -> Iterator[CheckFailed | tuple[str, str]]:
    """Yield nothing: the attention and the MLP have dropout, so training mode is not compared."""
    return iter(())


SIZES = (
    Size(2, 5, 6, H=2),
    Size(3, 4, 10, H=2, bias=False, seed=1),
    Size(1, 3, 8, H=4, dropout=0.5, seed=2),
)
LESSON = ModuleLesson(
    "block", STEPS, SIZES, MISTAKES, weights, start, steps, draw, train, first_wrong,
    names=((r"(ln|norm)\w*1|input", 1), (r"(ln|norm)\w*2|post", 3), (r"att|^sa$", 2),
           (r"mlp|ff|feed", 4)),
)  # fmt: skip
