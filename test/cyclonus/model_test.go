package cyclonus

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/mattfenwick/cyclonus/pkg/connectivity/probe"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
	"github.com/weir-net/weir/policy/verdict"
)

// TestModel: Cyclonus, weir's evaluator and the compiled rules give the same verdict for each packet.
func TestModel(t *testing.T) {
	passed, packets, unresolved := 0, 0, 0
	cases := newWorld(t, ipv4).cases()
	for i, c := range cases {
		ok := t.Run(fmt.Sprint(i+1), func(t *testing.T) {
			w := newWorld(t, ipv4)
			for n, s := range c.Steps {
				w.step(t, s)
				state := w.state(t)
				evaluator := verdict.New(state)
				rules, err := ruleset.NewSimulator(policy.Compile(state))
				if err != nil {
					t.Fatal(err)
				}
				for _, want := range w.expected(s.Probe) {
					if want.Combined != probe.ConnectivityAllowed && want.Combined != probe.ConnectivityBlocked {
						unresolved++
						continue
					}
					packets++
					p := packet(t, want.Job)
					v := evaluator.Evaluate(p)
					difference := compare(v, want)
					forward := ruleset.Packet{In: conf.Bridge, Out: conf.Bridge, Src: p.Src, Dst: p.Dst, Proto: p.Proto, Port: p.Port}
					if passes := rules.Allows(forward); passes != v.Allowed() {
						difference += fmt.Sprintf(" the rules let it pass: %v", passes)
					}
					if difference != "" {
						t.Errorf("%s\nstep %d, %s to %s: %s\n%s", c.Description, n+1, want.Job.FromKey, want.Job.ToKey, difference, v)
					}
				}
			}
		})
		if ok {
			passed++
		}
	}
	t.Logf("%d packets; %d probes name a port that the pod doesn't have, so there is no packet", packets, unresolved)
	fmt.Printf("cyclonus-model: %d/%d\n", passed, len(cases))
}

// compare returns how weir's verdict differs from the verdict of Cyclonus, or "" if the verdicts agree. A packet from a
// pod to itself must always be allowed: "a pod cannot block access to itself" (kubernetes.io, Network Policies).
func compare(v verdict.Verdict, want *probe.JobResult) string {
	self := want.Job.FromKey == want.Job.ToKey
	switch {
	case v.Egress.Allowed() != (*want.Egress == probe.ConnectivityAllowed):
		return fmt.Sprintf("egress is %s to Cyclonus", *want.Egress)
	case v.Ingress.Allowed() != (*want.Ingress == probe.ConnectivityAllowed):
		return fmt.Sprintf("ingress is %s to Cyclonus", *want.Ingress)
	case v.Self != self, v.Allowed() != (self || want.Combined == probe.ConnectivityAllowed):
		return fmt.Sprintf("it is %s to Cyclonus", want.Combined)
	}
	return ""
}

func packet(t *testing.T, j *probe.Job) verdict.Packet {
	t.Helper()
	src, err := netip.ParseAddr(j.FromIP)
	if err != nil {
		t.Fatal(err)
	}
	dst, err := netip.ParseAddr(j.ToIP)
	if err != nil {
		t.Fatal(err)
	}
	return verdict.Packet{
		Src:   src,
		Dst:   dst,
		Proto: ruleset.Protocol(strings.ToLower(string(j.Protocol))),
		Port:  uint16(j.ResolvedPort),
	}
}
