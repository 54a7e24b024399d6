# The image: one static binary and three small files, run by a user without rights. Nothing is fetched: the binary is built outside
# (`make static`), and `make image` puts both together, with or without a container engine (tools/oci_image.py makes the same
# image as an archive).
FROM scratch
ARG BINARY=target/image/lifeboat
# Who runs, for programs that look a user up; and that names are looked up in /etc/hosts too.
COPY tools/image/etc /etc
COPY ${BINARY} /lifeboat
USER 65532:65532
EXPOSE 7400 7401
VOLUME /data
ENV LIFEBOAT_DATA_DIR=/data/lifeboat
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 CMD ["/lifeboat", "health", "live", "--timeout", "4s"]
ENTRYPOINT ["/lifeboat"]
CMD ["serve"]
