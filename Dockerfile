# Not built here: the machine this was written on runs no Docker daemon.
#   docker build --target cpu -t quiet-star . && docker run --rm -v "$PWD/results:/work/results" quiet-star
#   docker build --target cuda -t quiet-star:cuda . && docker run --rm --gpus all quiet-star:cuda make bench-cuda
FROM python:3.11-slim AS base
RUN apt-get update && apt-get install --yes --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /work
ENV PATH=/work/.venv/bin:$PATH
# what is installed changes seldom, so it is a layer of its own
COPY Makefile pyproject.toml constraints.txt ./

FROM base AS cuda
# torch's wheels on PyPI bring the CUDA libraries; compiling FlexAttention needs a C compiler
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
# `make bench-cuda` runs tests
RUN make setup-tests
COPY . .
CMD ["make", "repro"]

FROM base AS cpu
RUN PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup
COPY . .
CMD ["make", "repro"]
