"""The Triton kernel of gptcli.model.fused_loss. Importing this file needs Triton."""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def kernel(  # type: ignore[no-untyped-def]
    logits, targets, losses, columns, vocab_size, share, BLOCK: tl.constexpr
):
    """Store the loss of one row, and replace the row's logits by the gradient of loss * `share`."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * columns
    target = tl.load(targets + row)
    # Read the target's logit here, because the second loop overwrites it. The reductions before
    # the second loop wait until all threads have read this logit.
    wanted = tl.load(logits + target).to(tl.float32)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits + at, mask=at < vocab_size, other=float("-inf")).to(tl.float32)
        new = tl.maximum(largest, x)
        safe = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(largest - safe) + tl.exp(x - safe)
        largest = new
    top = tl.max(largest, axis=0)
    norm = tl.sum(total * tl.exp(largest - top), axis=0)
    tl.store(losses + row, top + tl.log(norm) - wanted)
    inverse = 1.0 / norm
    for start in range(0, columns, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits + at, mask=at < vocab_size, other=float("-inf")).to(tl.float32)
        grad = tl.exp(x - top) * inverse - tl.where(at == target, 1.0, 0.0)
        tl.store(logits + at, grad * share, mask=at < columns)
