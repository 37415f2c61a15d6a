"""`python -m skipstep.pipelines.cli` is `skipstep`, for torchrun and accelerate launch."""

from skipstep.pipelines.cli.main import main

if __name__ == "__main__":
    main()
