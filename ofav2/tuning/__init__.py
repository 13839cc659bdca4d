"""Fine-tuning extracted networks: `finetune` is the path, `prepare` opens what it needs, `learn` trains."""
