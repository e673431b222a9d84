package manifests

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/internal/excerpt"
	"github.com/weir-net/weir/policy"
	"github.com/weir-net/weir/policy/ruleset"
)

func printable(name string) string {
	if !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		name = strconv.Quote(name)
	}
	return excerpt.Of(name)
}

func (f *file) errors(name string) []error {
	var errs []error
	say := func(where string, err error, effect string) {
		errs = append(errs, fmt.Errorf("%s: %w; %s", strings.TrimSuffix(printable(name)+": "+where, ": "), err, effect))
	}
	for _, u := range f.unparsed {
		switch {
		case f.seen:
			say(u.where, u.err, "its last readable content stays in force")
		case u.mayContainPolicy:
			say(u.where, u.err, "it may contain a policy, and has never been readable")
		default:
			say(u.where, u.err, "it contains no policy, and is left out")
		}
	}
	for _, e := range f.entries {
		if e.damage == noNamespace {
			say(e.where, fmt.Errorf("%s: %s", printable(e.object), e.problems[0]),
				"which namespace it is for isn't known, and it has never been readable")
		}
	}
	return errs
}

func (e *entry) audited() bool {
	if e.policy == nil {
		return false
	}
	audited, _ := policy.Audited(e.policy)
	return audited
}

func (e *entry) effect() string {
	switch {
	case e.kept:
		return "its last good version stays in force"
	case e.differs && e.policy != nil:
		return "it isolates the pods that any version selects, and allows what all versions allow"
	case e.differs && e.node != nil:
		return "the first in the order of the files' names counts"
	case e.differs:
		return "only the content that all versions share counts"
	case (e.damage == denying || e.damage == noSelector) && e.audited():
		return "it is audited as a policy that allows nothing"
	case e.damage == denying:
		return "the pods that it selects are closed"
	case e.damage == noSelector:
		return "all pods of namespace " + e.policy.Namespace + " are closed"
	case e.damage == noNamespace:
		return "it is left out: which namespace it is for isn't known"
	case e.damage == leftOut:
		return "it is left out"
	}
	return "the rest of it counts"
}

func (f *file) problems(name string) []ruleset.Problem {
	var all []ruleset.Problem
	for i := range f.entries {
		e := &f.entries[i]
		at := fmt.Sprintf("%s (%s, %s)", e.effect(), printable(name), e.where)
		for _, c := range e.problems {
			all = append(all, ruleset.Problem{Object: printable(e.object), Field: c.field, Message: c.why + "; " + at})
		}
		if e.differs {
			all = append(all, ruleset.Problem{
				Object: printable(e.object), Field: "metadata.name", Message: e.conflict + "; " + at,
			})
		}
	}
	return all
}

func (f *file) report(name string) agentapi.File {
	out := agentapi.File{Path: name, Objects: []agentapi.FileObject{}}
	for _, u := range f.unparsed {
		why := u.err.Error()
		if f.seen {
			why += "; its last readable content stays in force"
		}
		out.Objects = append(out.Objects, agentapi.FileObject{Where: u.where, State: agentapi.FileUnreadable, Why: why})
	}
	for i := range f.entries {
		e := &f.entries[i]
		o := agentapi.FileObject{Where: e.where, Object: printable(e.object), State: agentapi.FileRead}
		if o.Object == o.Where {
			o.Object = ""
		}
		switch {
		case e.kept:
			o.State = agentapi.FileKept
		case e.damage == notNeeded:
			o.State = agentapi.FileNotNeeded
		case e.damage == leftOut || e.damage == noNamespace:
			o.State = agentapi.FileLeftOut
		case e.damage == denying || e.damage == noSelector:
			o.State = agentapi.FileCloses
		case e.unenforced != nil:
			o.State = agentapi.FileNotEnforced
		case e.damage == partly || e.differs:
			o.State = agentapi.FilePartly
		}
		var why []string
		for _, c := range e.problems {
			why = append(why, c.String())
		}
		if len(e.problems) > 0 || e.differs || e.kept {
			why = append(why, e.effect())
		}
		if e.conflict != "" {
			why = append(why, e.conflict)
		}
		if len(e.ignored) > 0 {
			words := strings.Join(e.ignored, ", ")
			if e.damage != leftOut {
				words = "fields without meaning here: " + words
			}
			why = append(why, words)
		}
		o.Why = strings.Join(why, "; ")
		out.Objects = append(out.Objects, o)
	}
	return out
}
