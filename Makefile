# What people do here, in one word each. `make demo` needs Rust, make and Python; `make test` installs the rest.

CARGO ?= cargo

.PHONY: help demo test bench bench-copy bench-cutover bench-flips bench-build lint fmt setup

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

demo: ## Upgrade a live OAuth engine's databases on servers of its own (ARGS="--kill-at copy" and so on)
	@scripts/setup demo
	$(CARGO) build --release --locked
	target/release/handover demo $(ARGS)

test: setup ## Run all tests against real Postgres servers and a real RabbitMQ
	@# One more than cores, as some of them wait.
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-$$(($$(getconf _NPROCESSORS_ONLN) + 1))} \
	    $(CARGO) test --locked --workspace

bench: ## Measure: overhead of the engine, start-up, memory (docs/benchmarks.md)
	$(CARGO) bench --locked --bench overhead

bench-copy: ## Time copies against pgcopydb and pg_dump (ARGS="--size 200MB --rounds 1" and so on)
	@scripts/setup bench
	$(CARGO) build --release --locked
	scripts/bench/copy $(ARGS)

bench-cutover: ## Time the pause of a cutover by the number of tables (ARGS="--tables 10,1000" and so on)
	@scripts/setup bench
	$(CARGO) build --release --locked
	scripts/bench/cutover $(ARGS)

bench-flips: ## Flip there and back through PgBouncer under load (ARGS="--flips 40 --rates 500,1000" and so on)
	@scripts/setup flips
	$(CARGO) build --release --locked
	scripts/bench/flips $(ARGS)

bench-build: ## Time a first build and a small change, in CPU seconds (ARGS="--baseline COMMIT" and so on)
	@scripts/bench/build $(ARGS)

lint: ## Check the formatting, run clippy, and look at the licences of dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@scripts/licences

fmt: ## Format the code
	$(CARGO) fmt --all

setup: ## Install what the tests need, where that is allowed
	@scripts/setup
