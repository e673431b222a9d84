package verdict

import (
	"reflect"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-net/weir/policy"
)

// TestCacheKeepsNoOldVersions: a Cache keeps the parsed policies of several states. It keeps only the last version of
// each policy.
func TestCacheKeepsNoOldVersions(t *testing.T) {
	var c Cache
	version := func(names ...string) (s policy.State) {
		for _, name := range names {
			s.Policies = append(s.Policies, &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{
				Namespace: "shop", Name: name,
			}})
		}
		return s
	}
	kept := func() (n int) {
		for _, all := range c.parsed {
			n += len(all)
		}
		return n
	}
	stable := version("stable")
	c.New(stable)
	for range 100 {
		c.New(version("changing", "twice", "twice"))
	}
	if kept() != 4 {
		t.Errorf("%d policies are kept, want 4", kept())
	}
	rules := func() uintptr { return reflect.ValueOf(c.parsed["shop/stable"][0].rules).Pointer() }
	before := rules()
	if c.New(stable); rules() != before {
		t.Error("a policy is parsed again")
	}
}
