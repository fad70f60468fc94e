"""What a model is to do, and from which trained model it starts: the settings of fine-tuning and of each task."""

from __future__ import annotations

from dataclasses import dataclass

from slm.fields import Checked, UserError, setting

LANGUAGE_MODEL, PAIRS, CLASSIFICATION = TASKS = ("language_model", "pairs", "classification")
FINE_TUNING = "fine-tuning"  # a group of settings that goes with every task
# The settings of tasks that an evaluation may change.
OF_EVALUATION = ("source_field", "target_field", "target_file", "label_field", "num_beams", "length_penalty")


@dataclass(frozen=True, kw_only=True)
class TaskConfig(Checked):
    """What the model learns to do with the text."""

    task: str = setting(
        LANGUAGE_MODEL,
        "What to learn: to go on with text, to answer a source by its target (translation), or to tell labels. "
        "--task X --help shows the settings of each.",
        group="task",
        choices=TASKS,
        everyday=True,
    )
    init_from: str | None = setting(
        None,
        "Start from this trained model, a run's folder or URL, with its tokenizer and sizes; --task X --help tells "
        "more.",
        group="task",
        everyday=True,
    )
    also_evaluate: tuple[str, ...] | None = setting(
        None,
        "A text to evaluate on beside the new one, to see what is forgotten: files, or a run's folder, which stands "
        "for its validation text. Not with classification.",
        group=FINE_TUNING,
    )
    trainable: str = setting(
        "all",
        "What is trained of the model in --init_from: all of it, the class head alone, or small matrices beside its "
        "own, which stay as they are (LoRA).",
        group=FINE_TUNING,
        choices=("all", "head", "lora"),
    )
    lora_rank: int = setting(
        8, "Columns of each small matrix, for trainable = lora.", group=FINE_TUNING, rule="at least 1"
    )
    source_field: str = setting(
        "source", "Field of what is given, in .jsonl, .csv, .tsv and .parquet; a number without a header.", group=PAIRS
    )
    target_field: str = setting("target", "Field of what is to be written.", group=PAIRS)
    target_file: tuple[str, ...] | None = setting(
        None,
        "File whose line i is the target of line i of --data, a plain text; several where --data has several.",
        group=PAIRS,
    )
    num_beams: int = setting(
        4,
        "Beams of the search for a target when the model is scored or used; 1 is greedy.",
        group=PAIRS,
        rule="at least 1",
    )
    length_penalty: float = setting(
        1.0,
        "A target's log-probability is divided by its length to this power: above 1 favours long ones.",
        group=PAIRS,
        rule="0 to 10",
    )
    label_field: str = setting("label", "Field of the label; a number without a header.", group=CLASSIFICATION)
    class_weights: str = setting(
        "none",
        "How labels weigh in the loss: balanced gives all the same weight together, however rare.",
        group=CLASSIFICATION,
        choices=("none", "balanced"),
    )

    token_dropout: float = setting(
        0.2,
        "Share of a text's tokens that are replaced by random ones while training, so that no single one decides.",
        group=CLASSIFICATION,
        rule="at least 0 and below 1",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trainable == "head" and self.task != CLASSIFICATION:
            raise UserError(
                f"trainable = 'head' trains a class head, which task = {self.task!r} has not: take 'all' or 'lora', or "
                f"task = {CLASSIFICATION!r}."
            )
        for name, value in {"trainable": self.trainable, "also_evaluate": self.also_evaluate}.items():
            if value not in ("all", None) and self.init_from is None:
                raise UserError(f"{name} = {value!r} needs a trained model to start from: name it with init_from.")
        if self.also_evaluate and self.task == CLASSIFICATION:
            raise UserError(
                "also_evaluate asks for the next token of a text, which a model with a class head cannot tell."
            )
