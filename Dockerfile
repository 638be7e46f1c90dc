# syntax=docker/dockerfile:1
# slim: producers, consumers and analytics, without Ray and torch. trainer: with both, torch in its CPU build.

FROM python:3.12-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/millrace/bin:$PATH
RUN groupadd --gid 10001 millrace \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/millrace millrace \
    && install -d -o 10001 -g 10001 /var/lib/millrace /run/millrace \
    && python -m venv /opt/millrace
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY schemas schemas
COPY eventlog eventlog
COPY producers producers
COPY env env
COPY trainer trainer
COPY consumers consumers
COPY analytics analytics
COPY local local
COPY millrace millrace

FROM base AS slim
RUN pip install -c constraints.txt . && rm -rf /src
WORKDIR /var/lib/millrace
USER 10001:10001
ENTRYPOINT []
CMD ["millrace", "--help"]

FROM base AS trainer
RUN pip install -c constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu '.[train]' && rm -rf /src
WORKDIR /var/lib/millrace
USER 10001:10001
ENTRYPOINT []
CMD ["millrace", "train"]
