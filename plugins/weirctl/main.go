// Command weirctl is what people type to see what weir does on this node.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	root := &cobra.Command{
		Use: "weirctl", Short: "Shows what weir does on this node", SilenceUsage: true, SilenceErrors: true,
	}
	root.AddCommand(statusCommand(), podsCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "weirctl:", err)
		return 1
	}
	return 0
}
