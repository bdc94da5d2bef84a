# Everything that CI runs, by the same names.

# All checks but the tests.
check: fmt clippy doc deny typos manifests

fmt:
    cargo fmt --all --check

clippy:
    cargo clippy --workspace --all-targets --all-features -- -D warnings

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Bans, licences and sources.
deny:
    if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; else echo "cargo-deny is not installed: skipped"; fi

typos:
    if command -v typos >/dev/null; then typos; else echo "typos is not installed: skipped"; fi

# Manifests of Kubernetes and the Dockerfile.
manifests:
    deploy/kubernetes/validate

test:
    cargo test --workspace

# Figures: pause, gap, bytes, cost (tables; --json for machines, --svg DIR for pictures).
bench *ARGS:
    cargo run --release -p tests --bin bench -- {{ARGS}}
