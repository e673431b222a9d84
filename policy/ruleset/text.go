package ruleset

import (
	"fmt"
	"io"
	"strings"

	"github.com/weir-net/weir/conf"
)

// Write writes the ruleset as text: sets, then chains, then problems. policy/testdata has examples.
func (r Ruleset) Write(w io.Writer) error {
	var b strings.Builder
	for _, s := range r.Sets {
		fmt.Fprintf(&b, "set %s: %s%s\n", s.Name, ofFamily(s.Family), s.Kind)
		for e := range s.Entries.All() {
			b.WriteString("  " + e.String() + remark(e.Comment) + "\n")
		}
	}
	for _, c := range r.Chains {
		fmt.Fprintf(&b, "%schain %s\n", ofFamily(c.Family), c.Name)
		if c.Hook != "" {
			fmt.Fprintf(&b, "  hook: %s%s\n", c.Hook, remark(c.Comment))
		}
		for _, rule := range c.Rules {
			b.WriteString("  " + rule.String() + "\n")
		}
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "problem %s\n", p)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// String returns the rule as "CONDITION, CONDITION: ACTION # COMMENT".
func (r Rule) String() string {
	var conditions []string
	add := func(condition string) { conditions = append(conditions, condition) }
	if r.Src.IsValid() {
		add("source " + r.Src.String())
	}
	if r.Dst.IsValid() {
		add("destination " + r.Dst.String())
	}
	for _, link := range []struct{ where, name string }{{"in", r.In}, {"out", r.Out}, {"in port", r.InPort}} {
		if link.name != "" {
			add(link.where + " " + link.name)
		}
	}
	for _, word := range []string{string(r.Proto), string(r.Track), string(r.Shape)} {
		if word != "" {
			add(word)
		}
	}
	for _, m := range r.Sets {
		in := "in"
		if m.Not {
			in = "not in"
		}
		add(string(m.By) + " " + in + " " + m.Name)
	}
	if len(r.Ports) > 0 {
		add("port " + strings.Trim(fmt.Sprint(r.Ports), "[]"))
	}
	all := strings.Join(conditions, ", ")
	if all == "" {
		all = "any"
	}
	action := string(r.Action)
	switch r.Action {
	case Jump, GoTo:
		action += " " + r.To
	case Log:
		action += fmt.Sprintf(" %q", r.To)
	}
	return all + ": " + action + remark(r.Comment)
}

func remark(comment string) string {
	if comment == "" {
		return ""
	}
	return " # " + comment
}

func ofFamily(f conf.Family) string {
	if f == conf.IPv6 {
		return "IPv6 "
	}
	return ""
}
