"""How everything here is trained: by `Trainer`, so that it can stop and go on."""

import json
import shutil
import time

import torch
from transformers import Trainer, TrainingArguments


SEED = 0


def fit(model, tokenizer, dataset, collator, output, trainer_class=Trainer, **fields):
    """
    Trains `model` and writes it with its tokenizer to the folder `output`, unless that is there.

    Args:
        dataset (`list[dict]`), collator: the examples of all steps, and what makes batches of them.
        output (`Path`): checkpoints stand beside it; stopped, the training goes on from the last of them.
        fields: of `TrainingArguments`.

    Returns:
        `Path`: `output`.
    """
    if output.exists():
        return output
    folder = output.with_name(f"{output.name}-steps")
    on_gpu = torch.cuda.is_available()
    # Which torch 2.6 cannot tell.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    defaults = {
        "bf16": on_gpu or capabilities.get("avx512_bf16", False),
        "use_cpu": not on_gpu,
        "seed": SEED,
        "num_train_epochs": 1,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "optim": "adamw_torch_fused",
        "save_steps": 100,
        "save_total_limit": 1,
        "logging_steps": 25,
        "report_to": "none",
        "remove_unused_columns": False,
    }
    arguments = TrainingArguments(output_dir=str(folder), **defaults | fields)
    model.train()
    trainer = trainer_class(
        model, arguments, train_dataset=dataset, data_collator=collator, processing_class=tokenizer
    )
    start = time.time()
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    partial = output.with_name(f"{output.name}.partial")
    trainer.save_model(str(partial))
    log = {"seconds_of_last_run": round(time.time() - start), "log": trainer.state.log_history}
    (partial / "training.json").write_text(json.dumps(log, indent=1))
    partial.replace(output)
    shutil.rmtree(folder)
    return output


def last_checkpoint(folder):
    """The last whole checkpoint in `folder`, or None: `trainer_state.json` is what `Trainer` writes last."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.partition("-")[2]), default=None)
