"""Headers, config and policy in, a `CheckpointPlan` out: pure, without torch, files or tensor bytes."""
