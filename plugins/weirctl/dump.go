package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/internal/version"
	"github.com/weir-net/weir/plugins/weirctl/client"
)

func dumpCommand() *cobra.Command {
	var nodes client.NodeFlags
	cmd := &cobra.Command{
		Use: "dump FILE.tar.gz", Short: "Write a support bundle: the status of all nodes, without secrets",
		Long: "Writes the status of each node's agent into a new file, and the reasons why agents don't answer. The\n" +
			"bundle names pods, policies, nodes and their addresses. It has no logs, no tokens, and no objects of the API\n" +
			"server.",
		Example: "  kubectl weir dump weir.tar.gz && tar -tzf weir.tar.gz",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return client.Usage(errors.New("dump needs one argument: the file to write"))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			cluster, err := nodes.Cluster()
			if err != nil {
				return err
			}
			const private = 0o600
			file, err := os.OpenFile(args[0], os.O_CREATE|os.O_EXCL|os.O_WRONLY, private)
			if errors.Is(err, os.ErrExist) {
				return client.Usage(fmt.Errorf("%s exists: name a new file", args[0]))
			}
			if err != nil {
				return err
			}
			progress := client.NewProgress(os.Stderr)
			options := client.AskOptions{Parallel: nodes.Parallel, Within: answersWithin}
			s, err := cluster.Dump(cmd.Context(), file, options, progress, version.Of("weirctl"))
			progress.Clear()
			if err = errors.Join(err, file.Close()); err != nil {
				return errors.Join(err, os.Remove(args[0]))
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s has %d nodes: %s\n", args[0], len(s.Nodes), s.Counts())
			return err
		},
	}
	nodes.AddFlags(cmd.Flags())
	return cmd
}
