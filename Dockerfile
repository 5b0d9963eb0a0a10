# docker build -t resolution-matters --build-arg PIP_EXTRA_INDEX_URL=... .
# docker run --rm -v /data/bids:/bids:ro -v /data/out:/out resolution-matters /bids /out participant
# Its steps are those of containers/*.sh, which a slow test runs in a Debian root.
FROM debian:bookworm-slim AS base
COPY containers/packages.sh /tmp/packages.sh
RUN sh /tmp/packages.sh && useradd --create-home --uid 1000 person

FROM base
ARG PIP_EXTRA_INDEX_URL=""
COPY . /opt/resolution-matters
RUN PIP_EXTRA_INDEX_URL="$PIP_EXTRA_INDEX_URL" sh /opt/resolution-matters/containers/install.sh
ENV PATH=/opt/venv/bin:$PATH
USER person
WORKDIR /home/person
ENTRYPOINT ["resolution-matters"]
