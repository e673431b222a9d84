package ruleset_test

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/weir-net/weir/policy/ruleset"
)

// TestRules: Equal, Key and Identity notice a change of each field, except the fields that they ignore on purpose.
func TestRules(t *testing.T) {
	fields := reflect.TypeFor[ruleset.Rule]()
	none := ruleset.Rule{}
	for i := range fields.NumField() {
		var r ruleset.Rule
		name := fields.Field(i).Name
		switch f := reflect.ValueOf(&r).Elem().Field(i).Addr().Interface().(type) {
		case *netip.Prefix:
			*f = netip.MustParsePrefix("192.0.2.0/24")
		case *[]ruleset.SetMatch:
			*f = []ruleset.SetMatch{{Name: "weir-pods", By: ruleset.Source}}
		case *[]ruleset.PortRange:
			*f = []ruleset.PortRange{{First: 80, Last: 80}}
		case *[]string:
			*f = []string{"ns/policy"}
		default:
			reflect.ValueOf(f).Elem().SetString("x")
		}
		if same := r; !r.Equal(same) || !r.SameAs(same) || r.Key() != same.Key() {
			t.Errorf("%s: a rule isn't equal to itself", name)
		}
		if r.Equal(none) {
			t.Errorf("%s makes no difference", name)
		}
		words := name == "Comment" || name == "Policies"
		if r.SameAs(none) != words || (r.Key() == none.Key()) != words {
			t.Errorf("%s: is the rule the same as one without? %v, key %q", name, r.SameAs(none), r.Key())
		}
		id := func(r ruleset.Rule) string { return ruleset.Identity("", []ruleset.Rule{r}) }
		if same := id(r) == id(none); same != (name == "Policies") {
			t.Errorf("%s: rules with and without have one identity: %v", name, same)
		}
	}
}

// TestKeysDontRunTogether: rules that have the same texts in different fields or another order have different keys.
func TestKeysDontRunTogether(t *testing.T) {
	match := func(name string) ruleset.SetMatch { return ruleset.SetMatch{Name: name, By: ruleset.Source} }
	rules := []ruleset.Rule{
		{In: "ab"},
		{In: "a", Out: "b"},
		{In: "a1:b"},
		{Out: "ab"},
		{In: "ao1:b"},
		{Src: netip.MustParsePrefix("::/0")},
		{Src: netip.MustParsePrefix("0.0.0.0/0")},
		{Dst: netip.MustParsePrefix("::/0")},
		{Sets: []ruleset.SetMatch{match("a"), match("b")}},
		{Sets: []ruleset.SetMatch{match("b"), match("a")}},
		{Sets: []ruleset.SetMatch{{Name: "a", By: ruleset.Source, Not: true}}},
		{Sets: []ruleset.SetMatch{match("a")}},
		{Ports: []ruleset.PortRange{{First: 1, Last: 1}, {First: 2, Last: 2}}},
		{Ports: []ruleset.PortRange{{First: 1, Last: 2}}},
	}
	keys := map[string]ruleset.Rule{}
	for _, r := range rules {
		if other, ok := keys[r.Key()]; ok {
			t.Errorf("%+v and %+v have the key %q", r, other, r.Key())
		}
		keys[r.Key()] = r
	}
}
