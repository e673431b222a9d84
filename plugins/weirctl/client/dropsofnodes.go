package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/weir-net/weir/agentapi"
)

type DropsOfNodes struct {
	Query agentapi.DropsQuery
	// Nodes are the names of the nodes to ask. Empty means all.
	Nodes []string
	AskOptions
	// An error of Print ends the command.
	Print func(*agentapi.Drop) error
	// Tell gets lines for people, such as which nodes don't answer.
	Tell func(string)
}

// maxKept is the largest number of drops that Drops prints, for all nodes together. If there are more, Drops prints the
// newest. Tests change maxKept.
var maxKept = 200_000

// Drops prints the drops that the nodes remember, in the order of their times. If a node doesn't answer, Drops prints
// the drops of the other nodes, names the silent node and returns an error.
func (c *Cluster) Drops(ctx context.Context, o DropsOfNodes, progress *Progress) error {
	agents, err := c.Wanted(ctx, o.Nodes)
	if err != nil {
		return err
	}
	var all []*agentapi.Drop
	var away []string
	asked, leftOut := 0, 0
	err = AskAll(ctx, agents, o.AskOptions, func(ctx context.Context, of Agent) (drops []*agentapi.Drop, err error) {
		return drops, c.readDrops(ctx, of, o.Query, func(d *agentapi.Drop) error {
			if d != nil {
				drops = append(drops, d)
			}
			return nil
		})
	}, func(a Answer[[]*agentapi.Drop]) {
		if a.Err != nil {
			away = append(away, a.Node+": "+a.Err.Error())
		}
		all = append(all, a.Value...) // if the node has failed, the drops that it has sent before count too
		if len(all) > 2*maxKept {
			leftOut += cutOldest(&all)
		}
		asked++
		progress.Say("asked %d of %d nodes: %d drops", asked, len(agents), len(all))
	})
	leftOut += cutOldest(&all)
	progress.Clear()
	for _, d := range all {
		if err := o.Print(d); err != nil {
			return err
		}
	}
	if leftOut > 0 {
		o.Tell(fmt.Sprintf("%d older drops are left out: ask for less, as with --since 5m or --namespace", leftOut))
	}
	slices.Sort(away)
	for _, line := range away {
		o.Tell(line)
	}
	switch {
	case err != nil:
		return err
	case len(away) > 0:
		return fmt.Errorf("%d of %d nodes have not answered", len(away), len(agents))
	}
	return nil
}

func cutOldest(all *[]*agentapi.Drop) (removed int) {
	slices.SortStableFunc(*all, func(a, b *agentapi.Drop) int { return a.Time.Compare(b.Time) })
	removed = max(len(*all)-maxKept, 0)
	*all = slices.Delete(*all, 0, removed)
	return removed
}

// Wanted returns the agents of the named nodes, or all agents if nodes is empty. A node that doesn't exist is an error.
func (c *Cluster) Wanted(ctx context.Context, nodes []string) ([]Agent, error) {
	agents, err := c.Agents(ctx)
	if err != nil || len(nodes) == 0 {
		return agents, err
	}
	var some []Agent
	for _, n := range nodes {
		a, err := Find(agents, n)
		if err != nil {
			return nil, Usage(err)
		}
		if !slices.Contains(some, a) {
			some = append(some, a)
		}
	}
	return some, nil
}

// readDrops passes every drop to the function each, and nil for each sign of life. If that function returns an error,
// readDrops ends with this error.
func (c *Cluster) readDrops(
	ctx context.Context, of Agent, q agentapi.DropsQuery, each func(*agentapi.Drop) error,
) error {
	response, err := c.Open(ctx, of, http.MethodGet, q.Path(), nil)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		why, err := io.ReadAll(io.LimitReader(response.Body, 4<<10))
		if err != nil {
			return c.away(of, err)
		}
		return refusal(response.StatusCode, why)
	}
	for values := json.NewDecoder(response.Body); ; {
		d := &agentapi.Drop{}
		err := values.Decode(d)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return c.away(of, err)
		case d.Kind == "":
			d = nil
		case d.Node == "":
			d.Node = of.Node
		}
		if err := each(d); err != nil {
			return err
		}
	}
}

type teller struct {
	tell    func(string)
	room    int
	leftOut int
}

func (t *teller) say(format string, args ...any) {
	if t.room == 0 {
		t.leftOut++
		return
	}
	t.room--
	t.tell(strings.TrimSpace(fmt.Sprintf(format, args...)))
}
