// Package conformance is the unmodified Gateway API conformance suite, with what its mesh client needs where no kubelet runs.
//
// The suite sends its requests from inside pods, by `exec` through the API server. This program is the kubelet that the API
// server then calls: it takes the command out of the call and asks a simulated pod to run it, over plain HTTP.
// It knows nothing of meshes: who the pod is and how it reaches others is the business of that other program
// (tests/src/bin/conformance/upstream.rs).
package conformance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"sigs.k8s.io/gateway-api/conformance"
)

const (
	// Where the API server finds this kubelet, HOST:PORT; the Node's status says so.
	kubeletVariable = "CONFORMANCE_KUBELET"
	// Where simulated pods run commands: a URL, to which /NAMESPACE/POD is appended.
	podsVariable = "CONFORMANCE_PODS"
	// Longest that the client may take to open the streams of one exec.
	streamsDeadline = 10 * time.Second
	// Longest that a command may run; the longest sends 500 requests.
	commandDeadline = 60 * time.Second
)

// A stream of one exec, and the call that tells the client that it was taken.
type stream struct {
	httpstream.Stream
	replied <-chan struct{}
}

type kubelet struct {
	pods string
}

// run has a pod run a command; its output, or why it failed.
func (k kubelet) run(pod string, command []string) ([]byte, error) {
	body, err := json.Marshal(command)
	if err != nil {
		return nil, err
	}
	client := http.Client{Timeout: commandDeadline}
	answer, err := client.Post(k.pods+"/"+pod, "application/json", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	output, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, output)
	}
	return output, err
}

// streams waits until the client has opened as many as it asked for.
func streams(opened <-chan stream, wanted int) (map[string]httpstream.Stream, error) {
	found := map[string]httpstream.Stream{}
	deadline := time.After(streamsDeadline)
	for len(found) < wanted {
		select {
		case one := <-opened:
			<-one.replied
			found[one.Headers().Get(corev1.StreamType)] = one
		case <-deadline:
			return nil, fmt.Errorf("%d of %d streams within %s", len(found), wanted, streamsDeadline)
		}
	}
	return found, nil
}

// status is how the fourth version of the protocol tells how a command ended.
func status(err error) []byte {
	told := metav1.Status{Status: metav1.StatusSuccess}
	if err != nil {
		told = metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonInternalError, Message: err.Error()}
	}
	text, err := json.Marshal(told)
	if err != nil {
		panic(err) // a struct of strings
	}
	return text
}

// ServeHTTP answers POST /exec/NAMESPACE/POD/CONTAINER?command=…&output=1&error=1.
func (k kubelet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if len(path) != 4 || path[0] != "exec" {
		http.NotFound(w, r)
		return
	}
	asked := r.URL.Query()
	wanted := 1 // the error stream
	for _, name := range []string{corev1.ExecStdinParam, corev1.ExecStdoutParam, corev1.ExecStderrParam} {
		if asked.Get(name) == "1" {
			wanted++
		}
	}
	if _, err := httpstream.Handshake(r, w, []string{remotecommand.StreamProtocolV4Name}); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	opened := make(chan stream, wanted)
	connection := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(one httpstream.Stream, replied <-chan struct{}) error {
		opened <- stream{one, replied}
		return nil
	})
	if connection == nil {
		return // answered already
	}
	defer connection.Close()
	found, err := streams(opened, wanted)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubelet:", err)
		return
	}
	output, err := k.run(path[1]+"/"+path[2], asked[corev1.ExecCommandParam])
	if stdout := found[corev1.StreamTypeStdout]; stdout != nil && err == nil {
		_, err = stdout.Write(output)
	}
	found[corev1.StreamTypeError].Write(status(err)) // one that fails shows at the client
	for _, one := range found {
		one.Close()
	}
	<-connection.CloseChan()
}

// TestConformance runs the suite. Its settings are the suite's own flags.
func TestConformance(t *testing.T) {
	server := httptest.NewUnstartedServer(kubelet{os.Getenv(podsVariable)})
	listener, err := net.Listen("tcp", os.Getenv(kubeletVariable))
	if err != nil {
		t.Fatalf("the kubelet: %v", err)
	}
	server.Listener = listener
	server.StartTLS()
	t.Cleanup(server.CloseClientConnections)
	conformance.RunConformance(t)
}
