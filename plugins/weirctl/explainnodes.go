package main

import (
	"context"
	"fmt"
	"os"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/plugins/weirctl/client"
	"github.com/weir-net/weir/policy/explain"
)

// maxExplained is how many nodes an explanation asks at most. A Service may have endpoints on every node.
const maxExplained = 16

func addKernels(ctx context.Context, flags *client.NodeFlags, q explain.Question, e *explain.Explanation) {
	wanted := e.EnforcedOn()
	if len(wanted) == 0 {
		return
	}
	note := func(err error) {
		e.Notes = append(e.Notes, "the kernels of the ends' nodes were not asked: "+err.Error())
	}
	flags.Parallel = maxExplained
	cluster, all, err := flags.Agents(ctx)
	if err != nil {
		note(err)
		return
	}
	if len(wanted) > maxExplained {
		for _, node := range wanted[maxExplained:] {
			e.AddUnknown(node, fmt.Sprintf("the command asks %d nodes at most: ask about one pod there", maxExplained))
		}
		wanted = wanted[:maxExplained]
	}
	var agents []client.Agent
	for _, node := range wanted {
		of, err := client.Find(all, node)
		if err != nil {
			e.AddUnknown(node, err.Error())
			continue
		}
		agents = append(agents, of)
	}
	if q.Services, err = cluster.Services(ctx, ""); err != nil {
		e.Notes = append(e.Notes, "the agents were asked without Services: "+err.Error())
	}
	progress := client.NewProgress(os.Stderr)
	progress.Say("asking %d nodes", len(agents))
	options := client.AskOptions{Parallel: flags.Parallel, Within: answersWithin}
	err = client.AskAll(ctx, agents, options,
		func(ctx context.Context, of client.Agent) (its explain.Explanation, err error) {
			return its, cluster.Ask(ctx, of, agentapi.ExplainPath, q, &its)
		},
		func(a client.Answer[explain.Explanation]) {
			switch message, wrong := client.WrongInput(a.Err); {
			case wrong:
				e.AddUnknown(a.Node, "its agent doesn't know the ends: "+message)
			case a.Err != nil:
				e.AddUnknown(a.Node, a.Err.Error())
			default:
				e.AddNode(a.Node, a.Value)
			}
		})
	progress.Clear()
	if err != nil {
		note(err)
	}
}
