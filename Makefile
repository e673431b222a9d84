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

# The container image, for containerd, podman or Docker to import, or a registry to take; built without any of them. And
# the manifests that name it: make image IMAGE=registry.example.com/weir:1
IMAGE ?= weir.local/weir:dev
image: all
	@cd scripts/image && go run . --name $(IMAGE) --output $(CURDIR)/$(BIN)/weir-image.tar
	@for m in weir cleanup; do sed 's|image: weir.local/weir:dev|image: $(IMAGE)|' conf/$$m.yaml >$(BIN)/$$m.yaml; done

# Every test, with the race detector, each kernel test on a node of its own. CI has the linters run too, then the proofs, and
# on a cluster that is smaller than make e2e's, because its time is short, the end-to-end tests without the one whose figure
# is that of a machine that does nothing else, and some of Kubernetes' own specs.
test: packages vet $(if $(CI),lint)
	go test -race -timeout 20m ./...
	cd scripts/image && go test ./...
	@scripts/fuzz $(FUZZTIME)
	$(if $(CI),@SIZE=ci scripts/prove)
	$(if $(CI),@CONTROL_PLANES=1 N=3 STACK=dual scripts/cluster/with make --no-print-directory e2e-ci)

e2e-ci:
	@scripts/e2e -skip TestFirstConnection
	@FOCUS='(named port|updated|except clause|default-deny-all|after they are deleted)' scripts/e2e-upstream

# Each fuzz target for a while: make fuzz FUZZTIME=10m
FUZZTIME ?= 5s
fuzz:
	@scripts/fuzz $(FUZZTIME)

# What the kernel is told to do, compared with what NetworkPolicies mean: make prove SIZE=full
SIZE ?= ci
prove: packages
	@SIZE=$(SIZE) scripts/prove

# How the built programs behave under attack and failure, beside those of an earlier commit: make blackbox BEFORE=5a06764
BEFORE ?= 5a06764
blackbox: packages
	@scripts/blackbox $(BEFORE)

# A real Kubernetes on this machine, each node in namespaces of its own: make cluster-up N=3 CONTROL_PLANES=1 STACK=dual
cluster-up:
	@scripts/cluster/up

cluster-down:
	@scripts/cluster/down

# What a cluster's users do, on such a cluster: make e2e N=5 CONTROL_PLANES=3
e2e:
	@scripts/e2e

# ADD and DEL beside upstream's plugins and a floor, in turns; or beside another commit's: make bench-cni BEFORE=5a06764
bench-cni:
	@BEFORE=$(BEFORE) scripts/bench-cni

# Kubernetes' own specs on NetworkPolicy, on such a cluster: make e2e-upstream FOCUS=SCTP
e2e-upstream:
	@scripts/e2e-upstream

packages:
	@scripts/packages test

vet:
	go vet ./...
	cd scripts/image && go vet ./...

lint: packages
	go run $(LINT) run
	cd scripts/image && go run $(LINT) run
	shellcheck scripts/demo scripts/packages scripts/fuzz scripts/prove scripts/blackbox scripts/e2e scripts/policy-latency scripts/bench-cni scripts/image/try scripts/kubernetes/build scripts/kubernetes/try .ci/run
	shellcheck -x -P SCRIPTDIR $(filter-out %.yaml,$(wildcard scripts/cluster/*)) scripts/e2e-upstream

clean:
	rm -rf $(BIN)

.PHONY: all demo image test prove blackbox cluster-up cluster-down e2e e2e-ci e2e-upstream bench-cni fuzz packages vet lint clean FORCE
