# People and CI call these; README.md says what each is for.

BIN := bin
LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

all: $(BIN)/weir $(BIN)/weir-agent $(BIN)/weirctl

# Go's own cache knows what is up to date. The plugin is static, so that it runs on any node.
$(BIN)/%: FORCE
	@CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o $@ ./plugins/$*

# The walkthrough on this machine alone, without Kubernetes.
demo: all
	@scripts/packages demo
	@CGO_ENABLED=0 go build -o $(BIN)/demo/ ./scripts/http-echo \
		github.com/containernetworking/cni/cnitool github.com/containernetworking/plugins/plugins/meta/portmap
	@scripts/demo

# Every test, with the race detector, each kernel test on a node of its own. CI has the linters run too.
test: packages vet $(if $(CI),lint)
	go test -race -timeout 20m ./...
	@scripts/fuzz $(FUZZTIME)

# Each fuzz target for a while: make fuzz FUZZTIME=10m
FUZZTIME ?= 5s
fuzz:
	@scripts/fuzz $(FUZZTIME)

packages:
	@scripts/packages test

vet:
	go vet ./...

lint: packages
	go run $(LINT) run
	shellcheck scripts/demo scripts/packages scripts/fuzz scripts/kubernetes/build .ci/run

clean:
	rm -rf $(BIN)

.PHONY: all demo test fuzz packages vet lint clean FORCE
