# make help lists the targets: the text behind ## in the line of each.

BIN := bin
LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
D2 := oss.terrastruct.com/d2@v0.7.1

all: $(BIN)/weir $(BIN)/weir-agent $(BIN)/weirctl ## build the three programs in bin/

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Go writes the commit into the programs (weirctl version), unless git can't or won't read these sources.
VCS := -buildvcs=$(if $(shell git rev-parse HEAD 2>/dev/null),auto,false)

# Go's own cache knows what is up to date. The plugin is static, so that it runs on any node.
$(BIN)/%: FORCE
	@CGO_ENABLED=0 go build $(VCS) -trimpath -ldflags "-s -w" -o $@ ./plugins/$*

demo: all ## a policy walkthrough with real packets on this machine, without Kubernetes
	@scripts/packages demo
	@CGO_ENABLED=0 go build -o $(BIN)/demo/ ./scripts/http-echo \
		github.com/containernetworking/cni/cnitool github.com/containernetworking/plugins/plugins/meta/portmap
	@scripts/demo

# containerd, podman or Docker imports the image, or a registry takes it; none of them is needed to build it.
IMAGE ?= weir.local/weir:dev
image: all ## the container image, and the manifests that name it: IMAGE=registry.example.com/weir:1
	@cd scripts/image && go run . --name $(IMAGE) --output $(CURDIR)/$(BIN)/weir-image.tar
	@for m in weir cleanup; do sed 's|image: weir.local/weir:dev|image: $(IMAGE)|' conf/$$m.yaml >$(BIN)/$$m.yaml; done

# Each kernel test runs on a node of its own. CI's time is short: its cluster is smaller than make e2e's, it leaves out
# the end-to-end test that measures a latency on an idle machine, and it runs some of Kubernetes' own specs.
test: packages vet $(if $(CI),lint) ## every test, with the race detector; CI=true adds lint, the proofs and a cluster
	$(if $(CI),@scripts/packages browser)
	go test -race -timeout 60m ./...
	cd scripts/image && go test ./...
	@scripts/fuzz $(FUZZTIME)
	$(if $(CI),@SIZE=ci scripts/prove)
	$(if $(CI),@$(MAKE) --no-print-directory test-nftables)
	$(if $(CI),@CONTROL_PLANES=1 N=3 STACK=dual scripts/cluster/with make --no-print-directory e2e-ci)
	$(if $(CI),@CONTROL_PLANES=1 N=3 STACK=dual PROXY=nftables scripts/cluster/with \
		make --no-print-directory e2e-ci)

test-nftables: ## the tests with agents, attackers and killed plugins, with the backend nftables
	WEIR_BACKEND=nftables go test -timeout 90m ./test/blackbox ./test/hostile ./plugins/weir

e2e-ci:
	@scripts/e2e -skip TestFirstConnection
	@PROCS=2 FOCUS='(named port|updated|except clause|default-deny-all|after they are deleted)' scripts/e2e-upstream

FUZZTIME ?= 5s
fuzz: ## each fuzz target for a while: FUZZTIME=10m
	@scripts/fuzz $(FUZZTIME)

SIZE ?= ci
prove: packages ## compare what the kernel is told with what NetworkPolicies mean: SIZE=full; SIZE=ci takes two minutes
	@SIZE=$(SIZE) scripts/prove

blackbox: BEFORE ?= 5a06764
blackbox: ## the black-box tests with the programs of BEFORE=5a06764, which must fail, and with today's
	@scripts/blackbox $(BEFORE)

# Each measurement takes fewer rounds here than with its own target. Only bench-scale has a cluster, which has a
# synthetic API server.
bench: ## all measurements that need no cluster, in short: ADD, packets, changes, floods, large clusters
	@scripts/bench-cni -rounds 10 -bursts 1
	@scripts/bench-curves -rounds 6 -slice 5ms
	@scripts/bench-drops -pairs 3 -rounds 5
	@scripts/bench-scale -pods 100,1000 -rounds 3 -windows 1 -seconds 4 -restarts 1

bench-cni: ## measure ADD and DEL beside upstream's plugins, or beside another commit's: BEFORE=5a06764
	@BEFORE=$(BEFORE) scripts/bench-cni

bench-packets: ## measure connections and packets under weir's rules and the layouts of other engines
	@scripts/bench-packets

bench-curves: ## measure packets and changes while a node fills with pods or policies, with both backends
	@scripts/bench-curves

bench-drops: ## measure what a flood of denied packets costs
	@scripts/bench-drops

bench-scale: ## measure an agent in clusters of 100 to 100,000 pods, or beside another commit's: BEFORE=5a06764
	@BEFORE=$(BEFORE) scripts/bench-scale $(FLAGS)

cluster-up: ## a real Kubernetes on this machine: N=3 CONTROL_PLANES=1 STACK=dual; the first time takes 20 minutes
	@scripts/cluster/up

cluster-down: ## end that cluster
	@scripts/cluster/down

e2e: ## what a cluster's users do, on such a cluster, in a quarter of an hour: N=5 CONTROL_PLANES=3
	@scripts/e2e

e2e-upstream: ## Kubernetes' own specs on NetworkPolicy, on such a cluster: FOCUS=SCTP; without FOCUS all
	@scripts/e2e-upstream

pictures: ## draw docs/pictures/*.svg from their sources, *.d2
	@for p in docs/pictures/*.d2; do \
		go run $(D2) --theme 0 --dark-theme 200 --pad 10 $$p $${p%.d2}.svg || exit; \
	done
	@chmod 644 docs/pictures/*.svg

packages:
	@scripts/packages test

# In CI, the module proxy may be away for a moment. If it is away for longer, the targets vet and lint say so.
vet lint: $(if $(CI),modules)
modules:
	@for pause in 5 30 60 0; do \
		go mod download && (cd scripts/image && go mod download) && go run $(LINT) version >/dev/null && break; \
		sleep $$pause; \
	done

vet: ## go vet of all modules
	go vet ./...
	cd scripts/image && go vet ./...

# A script is a file named .sh, or one whose first line is a shebang of a shell or names the shell for shellcheck.
lint: packages ## golangci-lint, and shellcheck of every script that git knows
	go run $(LINT) run
	cd scripts/image && go run $(LINT) run
	git -c 'safe.directory=*' ls-files -z | \
		xargs -0 awk 'FILENAME ~ /[.]sh$$/ || /^#!.*sh$$|^# shellcheck shell=/ {print FILENAME} {nextfile}' | \
		xargs shellcheck -x -P SCRIPTDIR

clean: ## remove bin/
	rm -rf $(BIN)

.PHONY: all help demo image test test-nftables prove blackbox cluster-up cluster-down e2e e2e-ci e2e-upstream \
	bench bench-cni bench-packets bench-curves bench-drops bench-scale fuzz pictures packages modules vet lint clean FORCE
