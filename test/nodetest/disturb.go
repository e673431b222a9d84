package nodetest

import (
	_ "embed"
	"strings"
	"testing"
)

var (
	//go:embed testdata/disturbances
	disturbances string
	//go:embed testdata/undone
	undone string
)

// EachDisturbance runs f in a subtest for each of the administrators' settings in testdata/disturbances. These settings
// disturb packets over the loopback link. The rules are written with the flavour of iptables, such as "nft". After each
// subtest, the setting is undone.
func EachDisturbance(t *testing.T, flavour string, f func(t *testing.T)) {
	t.Helper()
	_, settings, _ := strings.Cut(disturbances, "== ")
	for setting := range strings.SplitSeq(settings, "== ") {
		name, commands, _ := strings.Cut(setting, "\n")
		t.Run(flavour+" "+name, func(t *testing.T) {
			defer RunEach(t, lines(undone)...)
			for _, c := range lines(commands) {
				if rest, ok := strings.CutPrefix(c, "IPTABLES "); ok {
					RunEach(t, "iptables-"+flavour+" "+rest, "ip6tables-"+flavour+" "+rest)
					continue
				}
				RunEach(t, c)
			}
			f(t)
		})
	}
}

func lines(text string) (all []string) {
	for l := range strings.Lines(text) {
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "#") {
			all = append(all, l)
		}
	}
	return all
}
