package agent

import (
	"slices"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy"
)

type sourceReport struct {
	files      []agentapi.File
	omissions  map[omission]bool
	unenforced []policy.Unenforced
}

type omission struct{ path, where, why string }

// reportFiles logs each document that the source leaves out of a file and whose object isn't known. If the object is
// known, the agent reports a problem of the object instead.
func (a *agent) reportFiles() {
	source, ok := a.Source.(Files)
	if !ok {
		return
	}
	was := a.source.omissions
	a.source.omissions = map[omission]bool{}
	a.source.files = source.Files()
	for _, f := range a.source.files {
		for _, o := range f.Objects {
			key := omission{f.Path, o.Where, o.Why}
			if o.State != agentapi.FileLeftOut || o.Object != "" {
				continue
			}
			if a.source.omissions[key] = true; !was[key] {
				a.Log.Info("a document is left out", "file", f.Path, "where", o.Where, "why", excerpt.Of(o.Why))
			}
		}
	}
}

func (a *agent) reportUnenforced() {
	if !a.cluster.known {
		return
	}
	var now []policy.Unenforced
	for _, u := range a.cluster.unenforced {
		now = append(now, policy.Unenforced{Kind: excerpt.Of(u.Kind), Where: excerpt.Of(u.Where), Count: u.Count})
	}
	log := func(say func(string, ...any), msg string, list, except []policy.Unenforced) {
		for _, u := range list {
			same := func(o policy.Unenforced) bool { return o.Kind == u.Kind && o.Where == u.Where }
			if !slices.ContainsFunc(except, same) {
				say(msg, "kind", u.Kind, "where", u.Where)
			}
		}
	}
	log(a.Log.Warn, "there may be a policy that weir doesn't enforce", now, a.source.unenforced)
	log(a.Log.Info, "no longer: there may be a policy that weir doesn't enforce", a.source.unenforced, now)
	a.source.unenforced = now
}
