import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.time.Duration;

/** Posts JSON as a stock client does, which offers HTTP/2 with each request: a URL, then paths and bodies. */
public class Caller {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int i = 1; i < arguments.length; i += 2) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0] + arguments[i]))
                .timeout(Duration.ofSeconds(20))
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(arguments[i + 1]))
                .build();
            System.out.println(client.send(request, HttpResponse.BodyHandlers.ofString()).body());
        }
    }
}
