# All of carstream in one image, and in one binary: the stages are links to it, and the command selects the stage:
#
#   docker build -t carstream .
#   docker run carstream mqtt-bridge --help
#
# Dependencies have a separate layer, valid until Cargo.lock or a Cargo.toml changes. The first build takes as long as the
# first build outside of Docker (docs/benchmarks.md); after a change of the sources only carstream's crates are compiled.

FROM rust:1.95.0-bookworm AS tools
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake \
    && rm -rf /var/lib/apt/lists/* \
    && cargo install cargo-chef --locked --version 0.1.78
WORKDIR /src

# The list of dependencies to compile, without carstream's own sources.
FROM tools AS recipe
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM tools AS build
# No incremental builds in an image. `kafka-tls` adds Kafka over TLS and SASL/SCRAM.
ENV CARGO_INCREMENTAL=0 CARGO_PROFILE_RELEASE_STRIP=symbols
COPY --from=recipe /src/recipe.json recipe.json
RUN cargo chef cook --release --locked --package carstream --features event-log/kafka-tls --recipe-path recipe.json
COPY . .
RUN cargo build --release --locked --package carstream --features event-log/kafka-tls \
    && mkdir /binaries \
    && mv target/release/carstream /binaries/ \
    && for stage in simulator mqtt-bridge preprocessor replicator sink trainer scorer; do \
        ln -s carstream /binaries/$stage; \
    done

FROM debian:bookworm-slim
# Certificates for stores and registries over https; OpenSSL for Kafka over TLS.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --no-create-home carstream \
    # New volumes mounted here are owned by the user that writes to them.
    && install -d -o carstream -g carstream /secrets /data /models
COPY --from=build /binaries/ /usr/local/bin/
USER carstream
WORKDIR /data
# Port for metrics and health of each stage; a stage listens on it only if CARSTREAM_ADMIN is set.
EXPOSE 9100
CMD ["carstream", "--help"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="carstream" \
      org.opencontainers.image.description="The open reference platform for connected cars: every stage, one image" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
