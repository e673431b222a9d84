package policytest

import (
	"math/rand/v2"
	"strings"

	"github.com/weir-net/weir/conf"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

// DualStack returns a state in which policies isolate IPv4 and IPv6 addresses of pods. It returns the same state each
// time.
func DualStack() policy.State {
	r := rand.New(rand.NewPCG(5, 1))
	for {
		s := State(r)
		in := map[conf.Family]bool{}
		for _, set := range policy.Compile(s).Sets {
			if set.Role == ruleset.Members && !strings.Contains(set.Name, "open") && set.Entries.Len() > 0 {
				in[set.Family] = true
			}
		}
		if len(in) == 2 && len(s.Policies) > 1 && len(s.Endpoints) > 2 {
			return s
		}
	}
}
