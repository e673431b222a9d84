// Package nft compares what the kernel holds of nf_tables with what it should hold.
package nft

import (
	"bytes"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// SameRule compares what the rules of a family do, and their comments, and not what they have counted.
func SameRule(family nftables.TableFamily, have *nftables.Rule, comment string, exprs []expr.Any) bool {
	has, _ := userdata.GetString(have.UserData, userdata.TypeComment)
	return has == comment && slices.EqualFunc(have.Exprs, exprs, func(a, b expr.Any) bool {
		x, errX := plain(family, a)
		y, errY := plain(family, b)
		return errX == nil && errY == nil && bytes.Equal(x, y)
	})
}

// plain is the expression without what the kernel counts, and without the number that a set had when it was made.
func plain(family nftables.TableFamily, e expr.Any) ([]byte, error) {
	switch x := e.(type) {
	case *expr.Counter:
		e = &expr.Counter{}
	case *expr.Lookup:
		e = &expr.Lookup{SourceRegister: x.SourceRegister, SetName: x.SetName, Invert: x.Invert}
	case *expr.Dynset:
		set := *x
		set.SetID = 0
		e = &set
	}
	return expr.Marshal(byte(family), e)
}

// Hooked says whether packets come through the kernel's chain at that hook, in that order, and go on from its end; with
// a hook of nil, whether they come through it only where a rule sends them.
func Hooked(have *nftables.Chain, hook *nftables.ChainHook, priority nftables.ChainPriority) bool {
	if hook == nil {
		return have.Hooknum == nil
	}
	accepts := have.Policy == nil || *have.Policy == nftables.ChainPolicyAccept
	return have.Hooknum != nil && *have.Hooknum == *hook && have.Priority != nil && *have.Priority == priority && accepts
}
