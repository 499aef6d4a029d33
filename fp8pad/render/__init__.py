"""What the terminal shows: plans, reports and progress, with rich."""
