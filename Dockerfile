# One image for head, workers and jobs, in two targets: docker build --target cpu|gpu (docs/image.md).
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS tools
ARG UV=0.13.9
RUN pip install --no-cache-dir --disable-pip-version-check "uv==${UV}"
WORKDIR /src
ENV UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1

FROM tools AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY cluster cluster
COPY serving serving
COPY pipelines pipelines
RUN uv build --wheel --out-dir /wheel

# Dependencies see pyproject.toml alone: their layers stay where only regrow's code has changed.
FROM tools AS plan
COPY docker/install.sh docker/
COPY pyproject.toml ./

FROM plan AS cpu-dependencies
RUN --mount=type=cache,target=/root/.cache docker/install.sh dependencies cpu /opt/regrow

FROM plan AS gpu-dependencies
RUN --mount=type=cache,target=/root/.cache docker/install.sh dependencies gpu /opt/regrow

# What both targets run on: KubeRay's probes need bash and wget, vLLM on CPU libnuma, a person ps and top.
FROM ${BASE} AS system
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 procps tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 regrow \
    && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash regrow \
    && echo "PATH=/opt/regrow/bin:\$PATH" > /etc/profile.d/regrow.sh
# The profile is for login shells, which set PATH anew: KubeRay's operator has an ENABLE_LOGIN_SHELL.
ENV PATH=/opt/regrow/bin:$PATH PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
COPY docker/health.sh /usr/local/bin/regrow-health
COPY docker/install.sh /usr/local/bin/regrow-install
HEALTHCHECK --interval=30s --timeout=20s --start-period=120s CMD ["regrow-health"]
WORKDIR /home/regrow
ENTRYPOINT ["tini", "--"]
CMD ["regrow", "--help"]

FROM system AS gpu
# Triton compiles a small launcher in C for each kernel when it is first used.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# For the NVIDIA container runtime, which brings the driver.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=gpu-dependencies /opt/regrow /opt/regrow
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel regrow-install wheel /wheel /opt/regrow
USER 1000:1000

FROM system AS cpu
COPY --from=cpu-dependencies /opt/regrow /opt/regrow
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel regrow-install wheel /wheel /opt/regrow
USER 1000:1000
