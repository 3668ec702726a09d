# All of carstream in one image; which stage it is, is the command:
#
#   docker build -t carstream .
#   docker run carstream mqtt-bridge --help
#
# Dependencies have a layer of their own, which lasts until Cargo.lock or a Cargo.toml changes. The first build takes as long
# as the first build outside (docs/benchmarks.md); after a change of the sources only they are compiled.

FROM rust:1.95.0-bookworm AS tools
RUN apt-get update \
    && apt-get install -y --no-install-recommends cmake \
    && rm -rf /var/lib/apt/lists/* \
    && cargo install cargo-chef --locked --version 0.1.78
WORKDIR /src

# What is to be compiled, without a line of our own sources.
FROM tools AS recipe
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM tools AS build
# Nobody builds on in an image. Kafka over TLS and SASL/SCRAM is in it: `kafka-tls`.
ENV CARGO_INCREMENTAL=0 CARGO_PROFILE_RELEASE_STRIP=symbols
COPY --from=recipe /src/recipe.json recipe.json
RUN cargo chef cook --release --locked --workspace --bins --features event-log/kafka-tls --recipe-path recipe.json
COPY . .
RUN cargo build --release --locked --workspace --bins --features event-log/kafka-tls \
    && mkdir /binaries \
    && find target/release -maxdepth 1 -type f -perm -u+x -exec mv {} /binaries/ ';'

FROM debian:bookworm-slim
# Certificates for stores and registries over https; OpenSSL for Kafka over TLS.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --no-create-home carstream \
    # New volumes mounted here belong to the one who may write to them.
    && install -d -o carstream -g carstream /secrets /data /models
COPY --from=build /binaries/ /usr/local/bin/
USER carstream
WORKDIR /data
# Each stage has its metrics and its health there; nothing listens on it unless CARSTREAM_ADMIN says so.
EXPOSE 9100
CMD ["carstream", "--help"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="carstream" \
      org.opencontainers.image.description="The open reference platform for connected cars: every stage, one image" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
