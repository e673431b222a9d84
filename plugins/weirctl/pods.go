package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/endpoint"
	"github.com/weir-net/weir/plugins/weirctl/client"
)

func podsCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "pods",
		Short: "Show the pods that weir attached on this node: container, addresses, link, policies, since when",
		Long: "Shows the pods that weir attached on this node, with container, addresses, link, MAC, and the policies\n" +
			"that isolate them. If no agent answers, it shows their endpoint records, and ? for policies.",
		Args: client.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			format, err := client.ParseFormat(output)
			if err != nil {
				return err
			}
			s, err := client.Status(cmd.Context())
			if err == nil {
				return client.PrintPods(cmd.OutOrStdout(), format, s.Pods)
			}
			pods, unread := recorded()
			if errors.Is(err, agentapi.ErrNoAgent) {
				err = nil
			}
			if unread != nil && len(pods) == 0 { // an empty list would say that there are no pods
				return errors.Join(err, unread)
			}
			return errors.Join(client.PrintPods(cmd.OutOrStdout(), format, pods), err, unread)
		},
	}
	outputFlag(cmd, &output, "", "text", "json")
	return cmd
}

func recorded() ([]agentapi.PodStatus, error) {
	endpoints, err := endpoint.List()
	pods := []agentapi.PodStatus{} // an empty list is printed as [], not as null
	for _, e := range endpoints {
		p := agentapi.PodOf(e)
		p.Ingress, p.Egress = "?", "?"
		pods = append(pods, p)
	}
	return pods, err
}
