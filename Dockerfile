# bge-cocktail with what serves and searches; on a GPU: docker build --build-arg TORCH=cu130 .
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# which build of torch: cpu, or one for CUDA
ARG TORCH=cpu
ARG EXTRAS=demo,language,lora,search,serve

ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/${TORCH} \
    PIP_NO_CACHE_DIR=1 \
    PATH=/app/.venv/bin:$PATH

WORKDIR /app
COPY . .
RUN scripts/environment "${EXTRAS}" && useradd --create-home --uid 1000 user

# models and data lie in a folder of the host: docker run -v "$PWD:/work" ...
WORKDIR /work
USER 1000
ENTRYPOINT ["bge-cocktail"]
CMD ["--help"]
