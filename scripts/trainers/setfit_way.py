"""Few texts to a classifier with SetFit itself; run by scripts/compare_few_shot.py in SetFit's own environment."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments


def main() -> None:
    """Train, predict the test texts, print."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    files = {name: Path(settings[name]).read_text(encoding="utf-8") for name in settings["files"]}
    rows = {name: [json.loads(line) for line in text.splitlines()] for name, text in files.items()}
    model = SetFitModel.from_pretrained(settings["model"], local_files_only=True)
    model.model_body.max_seq_length = settings["max_length"]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            batch_size=settings["batch_size"],
            num_epochs=1,
            num_iterations=settings["pairs_per_text"],
            body_learning_rate=settings["learning_rate"],
            seed=settings["seed"],
            report_to="none",
            save_strategy="no",
            show_progress_bar=False,
        )
        Trainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows["train"])).train()
    predicted = [str(one) for one in model.predict([row["text"] for row in rows["test"]])]
    right = [one == row["label"] for one, row in zip(predicted, rows["test"], strict=True)]
    print(json.dumps({"accuracy": sum(right) / len(right)}))


if __name__ == "__main__":
    main()
