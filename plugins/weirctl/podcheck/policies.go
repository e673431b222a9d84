package podcheck

import (
	"context"
	"fmt"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
)

type phase struct {
	check   Name
	create  []*networkingv1.NetworkPolicy
	remove  []string
	allowed func(attempt) bool
}

func allOf(attempt) bool  { return true }
func noneOf(attempt) bool { return false }

func (c *Check) policyPhases(ctx context.Context, r *run) error {
	only := func(a attempt) bool { return a.from == r.first() }
	ingress := policyObject(denyPolicy, server, networkingv1.PolicyTypeIngress)
	egress := policyObject(egressPolicy, client, networkingv1.PolicyTypeEgress)
	for _, p := range []phase{
		{Deny, []*networkingv1.NetworkPolicy{ingress}, nil, noneOf},
		{Allow, []*networkingv1.NetworkPolicy{allowObject(r.first())}, nil, only},
		{Reopen, nil, []string{denyPolicy, allowPolicy}, allOf},
		{DenyEgress, []*networkingv1.NetworkPolicy{egress}, nil, noneOf},
	} {
		for _, np := range p.create {
			if err := c.create(ctx, r.namespace, np); err != nil {
				return err
			}
		}
		for _, name := range p.remove {
			if err := c.Delete(ctx, policies, r.namespace, name); err != nil {
				return err
			}
		}
		line, err := c.policyPhase(ctx, r, p)
		if err != nil {
			return err
		}
		c.tell(r, line)
	}
	return nil
}

// policyPhase tries the connections until exactly those connections succeed that the policies allow, or until the
// time Times.Applies is over. It leaves out connections that failed without policies.
func (c *Check) policyPhase(ctx context.Context, r *run, p phase) (Line, error) {
	var attempts []attempt
	for _, a := range r.connections(c.Times.Denied) {
		if r.direct[direct{a.from, a.to, a.family}] {
			attempts = append(attempts, a)
		}
	}
	for began := time.Now(); ; {
		c.Progress.Say("%s: %d attempts", p.check, len(attempts))
		results, err := c.try(ctx, r, attempts)
		if err != nil {
			return Line{}, err
		}
		var outcomes []Outcome
		wrong := false
		for i, a := range attempts {
			o := r.policyOutcome(a, results[i], p.allowed(a))
			wrong = wrong || !o.OK
			outcomes = append(outcomes, o)
		}
		took := time.Since(began)
		if !wrong || took > c.Times.Applies {
			line := lineOf(p.check, outcomes, "")
			if line.State == OK {
				line.Detail += fmt.Sprintf(", applied within %.1f s", took.Seconds())
			}
			return line, nil
		}
		if !wait(ctx, c.Times.Poll) {
			return Line{}, context.Cause(ctx)
		}
	}
}

// policyOutcome expects success if the policies allow the connection, and otherwise a timeout. Policies cause no other
// failure, so any other failure counts as wrong.
func (r *run) policyOutcome(a attempt, t tried, allowed bool) Outcome {
	o := r.outcome(a, t)
	switch {
	case allowed:
		if !o.OK {
			o.Why = "a connection that the policies allow fails: " + o.Why
		}
		return o
	case o.OK:
		o.Why = "a connection succeeds that a policy denies"
	case !t.Timeout:
		o.Why = "a connection that a policy denies fails otherwise: " + o.Why
	}
	o.OK = !o.OK && t.Timeout
	return o
}
