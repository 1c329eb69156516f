# What one does with gridbeam. `make` alone lists the targets.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# Arguments of the demo and the benchmark, such as ARGS='--nodes 5 --kill-node'.
ARGS    ?=
# How long `make fuzz` spends on each target.
FUZZTIME ?= 20s
# What the protobufs must stay compatible with.
BASE    ?= $(shell git rev-parse -q --verify origin/main 2>/dev/null || git rev-parse -q --verify HEAD 2>/dev/null)

# go-nvml's header marks functions of old drivers as deprecated; gcc need not say so in every build.
export CGO_CFLAGS ?= -O2 -g -Wno-deprecated-declarations

# Debian packages that the tests need: a C compiler for the race detector, what Python functions run in, and what makes
# networks of namespaces, which only root does.
PACKAGES = gcc libc6-dev bubblewrap python3 python3-cloudpickle iproute2 nftables procps
# Whether all of them are there.
HAVE = { [ "$$(id -u)" != 0 ] || { command -v ip && command -v nft && command -v sysctl; } >/dev/null; } && command -v "$$($(GO) env CC)" >/dev/null && test -x /usr/bin/bwrap && /usr/bin/python3 -c 'import cloudpickle' 2>/dev/null

# Tools are built once for each state of tools/go.mod.
TOOLS := .tools/$(shell cat tools/go.mod tools/go.sum | sha256sum | cut -c1-16)
BIN   := $(CURDIR)/$(TOOLS)

.DEFAULT_GOAL := help
.PHONY: help build sweep demo test packages test-system bench check lint protos generated race fuzz corpora generate tidy tools clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## bin/gridbeam
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/gridbeam ./cmd/gridbeam

sweep: ## the demo's job, as a WebAssembly module
	@mkdir -p bin
	GOOS=wasip1 GOARCH=wasm $(GO) build -trimpath -buildvcs=false -ldflags '-s -w' -o bin/sweep.wasm ./examples/sweep

demo: build sweep ## a network of processes on loopback and one real job; ARGS='--nodes 5 --kill-node'
	bin/gridbeam demo $(ARGS)

test: packages ## vet and test everything, with the race detector where there is a C compiler
	$(GO) vet ./...
	@if command -v "$$($(GO) env CC)" >/dev/null; then race=-race; else race=; \
		echo 'make: no C compiler, so the race detector stays off; apt-get install $(PACKAGES)'; fi; \
	echo "$(GO) test $$race -timeout 20m ./..."; CGO_ENABLED=$${race:+1} $(GO) test $$race -timeout 20m ./...

packages: # installs what the tests need, where that is possible and needed
	@if $(HAVE); then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -q && apt-get install -q -y --no-install-recommends $(PACKAGES) || \
			echo 'make: could not install $(PACKAGES); going on without'; \
	else \
		echo 'make: not root on Debian, so nothing is installed and tests of functions are skipped; apt-get install $(PACKAGES)'; \
	fi </dev/null

test-system: packages ## the long tests, build tag system: real processes, kill -9, many seeds
	CGO_ENABLED=1 $(GO) test -race -tags system -timeout 120m ./...
	$(GO) test -tags system -timeout 60m -run 'HostileServers|FindIsFast|RNP004|AModelOf|Calibrated' -v ./dht # 200 hosts, models of 10,000; times and sizes without the detector

bench: build ## measure dispatch against targets; ARGS go to the driver
	$(GO) run ./bench $(ARGS)

check: lint protos generated race ## all that a change has to pass

lint: $(TOOLS) ## formatting, vet, golangci-lint, layers and documentation
	@out=$$($(TOOLS)/gofumpt -l $$(git ls-files --cached --others --exclude-standard '*.go' | grep -v '\.pb\.go$$')); \
	if [ -n "$$out" ]; then echo "not formatted; run $(TOOLS)/gofumpt -w on:"; echo "$$out"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags system ./...
	$(TOOLS)/golangci-lint run ./...
	$(GO) test ./internal/layering ./internal/doccheck

protos: $(TOOLS) # the wire stays readable for those who speak it already
	$(TOOLS)/buf lint
	@if [ -z "$(BASE)" ]; then echo 'make: no git history, so the breaking check is skipped'; \
	elif [ -z "$$(git ls-tree -r --name-only $(BASE) -- protocol/pb | grep '\.proto$$')" ]; then \
		echo 'make: $(BASE) has no protobufs, so the breaking check is skipped'; \
	else echo 'buf breaking --against $(BASE)'; $(TOOLS)/buf breaking --against '.git#ref=$(BASE)'; fi

generated: $(TOOLS) # generated files are those that the sources give
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && PATH="$(BIN):$$PATH" $(BIN)/buf generate -o "$$tmp" && \
	cd "$$tmp" && for f in $$(find . -name '*.pb.go'); do \
		cmp -s "$$f" "$(CURDIR)/$$f" || { echo "$$f is not what its .proto gives; run make generate"; bad=1; }; done; \
	cd "$(CURDIR)" && for f in $$(find protocol/pb beambridge/beamapi/beamwire -name '*.pb.go'); do \
		[ -e "$$tmp/$$f" ] || { echo "$$f has no .proto; remove it"; bad=1; }; done; [ -z "$$bad" ]

race: packages
	CGO_ENABLED=1 $(GO) test -race -timeout 20m ./...

fuzz: ## each fuzz target for FUZZTIME
	@grep -rl --include='*_test.go' '^func Fuzz' . | sort | while read -r f; do \
		for t in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$f"); do \
			echo "$$(dirname $$f) $$t"; \
			$(GO) test -run '^$$' -fuzz "^$$t\$$" -fuzztime $(FUZZTIME) "$$(dirname $$f)" || exit 1; \
		done; done

corpora: ## keep what `make fuzz` has found, for the targets that have a file of it
	@cache="$$($(GO) env GOCACHE)/fuzz/$$($(GO) list -m)"; for file in $$(find . -path '*/testdata/corpus/*.txt'); do \
		t=$$(basename "$$file" .txt); at=$${file%/testdata/*}; \
		{ cat "$$file"; for f in "$$cache/$$at/$$t"/*; do [ -f "$$f" ] && tail -n +2 "$$f" | paste -s; done; } | LC_ALL=C sort -u > "$$file.new"; \
		mv "$$file.new" "$$file"; echo "$$file $$(wc -l < "$$file")"; done

generate: $(TOOLS) ## Go code from protobufs
	PATH="$(BIN):$$PATH" $(BIN)/buf generate

tidy: ## go.mod and go.sum of both modules
	$(GO) mod tidy
	cd tools && $(GO) mod tidy

tools: $(TOOLS) # buf, golangci-lint, gofumpt and protoc-gen-go as tools/go.mod pins them

$(TOOLS):
	@rm -rf .tools && mkdir -p .tools
	@echo 'building the tools of tools/go.mod, once'
	cd tools && CGO_ENABLED=0 GOBIN="$(BIN).new" $(GO) install tool
	@mv $(BIN).new $(BIN)

clean: ## remove what was built
	rm -rf bin .tools
