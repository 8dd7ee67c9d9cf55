# lariat serve, with the demo model: docker build -t lariat . && docker run -p 8080:8080 lariat
# Models of your own: docker run -p 8080:8080 -v $PWD/models:/models:ro lariat -m /models/model.gguf
FROM debian:trixie-slim AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Versions are Debian's, and stay those of the release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libgomp1 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY LICENSE README.md pyproject.toml setup.py ./
COPY licenses licenses
COPY engine engine
# -s: modules without symbols of debuggers. Nobody runs pip, a compiler or NumPy's tests in the image.
RUN python3 -m venv --without-pip /opt/lariat \
    && python3 -m venv /tmp/pip \
    && LARIAT_CFLAGS="-g0 -s" /tmp/pip/bin/pip --python /opt/lariat/bin/python install --no-cache-dir \
        '.[server]' \
    && find /opt/lariat -type d -name tests -prune -exec rm -rf {} +

FROM debian:trixie-slim
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 lariat
COPY --from=build /opt/lariat /opt/lariat
ENV PATH=/opt/lariat/bin:$PATH
USER 10001
WORKDIR /home/lariat
EXPOSE 8080
HEALTHCHECK --start-period=60s CMD ["python", "-c", \
    "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/health')"]
ENTRYPOINT ["lariat", "serve", "--host", "0.0.0.0"]
