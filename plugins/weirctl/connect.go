package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/spf13/cobra"

	"github.com/weir-net/weir/agentapi"
	"github.com/weir-net/weir/plugins/weirctl/client"
)

// connectCommand joins standard input and output with the agent's socket. Commands about other nodes run it in the
// agents' pods.
//
// Equivalent to: nc -U /run/weir/agent.sock
func connectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "connect", Short: "Join standard input and output with the agent's socket", Hidden: true, Args: client.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return connect(cmd.Context(), os.Stdin, cmd.OutOrStdout())
		},
	}
}

func connect(ctx context.Context, in io.Reader, out io.Writer) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", agentapi.Socket)
	if err != nil {
		return fmt.Errorf("%w: %w", agentapi.ErrNoAgent, err)
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	go func() { // ends with the process, because nothing can end a read of standard input
		if _, err := io.Copy(conn, in); err != nil && !errors.Is(err, net.ErrClosed) {
			_ = conn.Close()
		}
	}()
	_, err = io.Copy(out, conn)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
