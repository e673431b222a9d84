package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/plugins/weirctl/probe"
)

// probeCommand is for the pods of kubectl weir check: "serve" is their program, and the check starts "run" by exec.
func probeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "probe", Short: "Answer and try connections in the pods of kubectl weir check", Hidden: true,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(&cobra.Command{
		Use: "serve", Short: "Answer connections with the pod's name", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			name, err := os.Hostname()
			if err != nil {
				return err
			}
			return probe.Serve(cmd.Context(), name)
		},
	}, &cobra.Command{
		Use: "run", Short: "Try the probes that standard input lists as JSON, and print the results as JSON",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var probes []probe.Probe
			if err := json.NewDecoder(cmd.InOrStdin()).Decode(&probes); err != nil {
				return fmt.Errorf("read the probes: %w", err)
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(probe.Run(cmd.Context(), probes))
		},
	})
	return cmd
}
