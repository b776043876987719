"""`python -m ehrr1.rollout.vllm_server`: the earlier name of `ehrr1.engines.vllm_server`."""

from ehrr1.engines.vllm_server import main

if __name__ == "__main__":
    main()
