"""Sequence-classification checkpoints that transformers wrote, without any help of ours."""

from pathlib import Path


def plain_checkpoint(
    base: str,
    folder: Path,
    names: list[str],
    *,
    problem: str | None = None,
    pad: str | None = None,
    shard: str = "1GB",
) -> str:
    """Write a sequence-classification checkpoint with transformers alone."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    if pad is not None:
        tokenizer.pad_token = pad
    settings = AutoConfig.from_pretrained(
        base,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        problem_type=problem,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(settings)
        if hasattr(model, "score"):
            torch.nn.init.normal_(model.score.weight)  # its own are too small to tell texts apart
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    return str(folder)
