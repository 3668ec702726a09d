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
ENV CARGO_INCREMENTAL=0 CARGO_PROFILE_RELEASE_STRIP=symbols \
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C link-arg=-Wl,-z,pack-relative-relocs"
COPY --from=recipe /src/recipe.json recipe.json
RUN cargo chef cook --release --locked --package carstream --features event-log/kafka-tls --recipe-path recipe.json
COPY . .
RUN cargo build --release --locked --package carstream --features event-log/kafka-tls \
    && mkdir /binaries \
    && mv target/release/carstream /binaries/ \
    && for stage in simulator mqtt-bridge preprocessor replicator sink trainer scorer; do \
        ln -s carstream /binaries/$stage; \
    done

FROM debian:bookworm-slim AS runtime
# Certificates for stores and registries over https; OpenSSL for Kafka over TLS. Package managers, Perl, character sets
# and manuals are not needed to run anything; the list of packages stays, for scanners.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libssl3 \
    && useradd --system --uid 10001 --user-group --no-create-home carstream \
    && rm -rf /var/lib/apt /var/cache/* /usr/lib/apt /usr/bin/apt* /usr/bin/perl* /usr/lib/*/perl* /usr/share/perl* \
        /usr/lib/*/libapt* /usr/lib/*/gconv /usr/lib/locale /usr/share/doc /usr/share/info /usr/share/locale \
        /usr/share/man /var/lib/dpkg/info /var/log/*

# In one layer: what was removed takes no room.
FROM scratch
COPY --from=runtime / /
COPY --from=build /binaries/ /usr/local/bin/
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# New volumes mounted here are owned by the user that writes to them.
RUN install -d -o carstream -g carstream /secrets /data /models
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
